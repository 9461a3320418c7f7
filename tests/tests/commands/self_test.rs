//! `doctor --self-test` with machines that work, and with a VMM that starts none.

use sandboxvm_tests::home::Home;
use serde_json::Value;
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

fn trials(report: &Value) -> Vec<(&str, bool)> {
    let trials = report["self_test"]["trials"].as_array().unwrap_or_else(|| panic!("no trials: {report:#}"));
    trials.iter().map(|trial| (trial["name"].as_str().unwrap_or_default(), trial["passed"] == true)).collect()
}

#[test]
#[ignore = "soak: fills the memory and the disk of guests, for minutes"]
fn self_test_passes_on_this_host_and_leaves_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let report = home
        .cli(["doctor", "--self-test", "--json"])
        .env("TMPDIR", scratch.path())
        .deadline(Duration::from_secs(1200))
        .run()
        .succeeds()
        .json();
    let trials = trials(&report);
    assert!(trials.len() >= 14 && trials.iter().all(|(_, passed)| *passed), "{report:#}");
    assert_eq!(report["usable"], true);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn self_test_reports_machines_that_do_not_start() {
    let Some(home) = Home::with_kvm() else { return };
    let scratch = tempfile::tempdir().unwrap();
    // It says what KVM has, as the real one does, and does nothing else.
    let vmm = home.path().join("vmm");
    let real = home.artefacts().part("sandboxvm-vmm");
    fs::write(&vmm, format!("#!/bin/sh\n[ \"$1\" = --probe ] && exec '{}' --probe\nexit 3\n", real.display())).unwrap();
    fs::set_permissions(&vmm, Permissions::from_mode(0o755)).unwrap();
    let test = home.cli(["doctor", "--self-test", "--json"]).env("TMPDIR", scratch.path());
    let finished = test.env("SANDBOXVM_VMM", &vmm).run();
    assert_eq!(finished.code(), Some(125));
    let report: Value = serde_json::from_str(&finished.out()).unwrap();
    for (name, passed) in trials(&report) {
        assert_eq!(passed, name == "nothing left behind", "{name}: {report:#}");
    }
    assert_eq!(report["usable"], false);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}
