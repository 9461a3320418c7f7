//! Runs the service of the code interpreter without a guest, with Debian's Python on this host, as
//! in the image. E2B's own client sends the requests. The assertions are in
//! `images/code-interpreter/tests`. `server/sdks.rs`, one of the long tests, runs the service in a
//! guest.

use sandboxvm_tests::{artefacts::kvm_is_wanted, cli::Invocation};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

const CELLS: &str = "cells.py";
const RESULTS: &str = "results.py";

#[test]
fn every_cell_ends_and_the_next_is_answered() {
    run(CELLS);
}

#[test]
fn results_are_strict_json_as_clients_read_it() {
    run(RESULTS);
}

/// The Python packages are installed with the clients for the server's tests. A run without guests
/// does not install them.
fn run(program: &str) {
    if !kvm_is_wanted() {
        return;
    }
    let sdks = env::var_os("SANDBOXVM_TEST_SDKS").expect("scripts/test sets SANDBOXVM_TEST_SDKS: scripts/lib/sdks.sh");
    let mut command = Command::new(Path::new(&sdks).join("python/bin/python"));
    command.arg(programs().join(program)).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    let ended = Invocation::new(command).deadline(Duration::from_secs(150)).run();
    assert!(ended.code() == Some(0), "{}", ended.transcript());
}

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/code-interpreter/tests")
}

#[test]
fn every_test_program_of_the_interpreter_is_run() {
    let mut there: Vec<String> = fs::read_dir(programs())
        .expect("the programs are there")
        .flatten()
        .map(|entry| entry.file_name().into_string().expect("a plain name"))
        .filter(|name| name.ends_with(".py"))
        .collect();
    there.sort();
    // `cells.py` and `results.py` import `interpreter.py`.
    assert_eq!(there, [CELLS, "interpreter.py", RESULTS]);
}
