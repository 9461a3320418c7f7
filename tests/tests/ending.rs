//! A sandbox that ends takes along everything that its VMM started, whatever code took the VMM over, and no other sandbox.
//! Where a VMM is in no control group its session says what is its; each attack is shown to work without either.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use rustix::process::{Pid, Signal, kill_process};
use sandboxvm_protocol::vmm::users;
use sandboxvm_tests::{
    drills,
    home::{Home, SMALL, Sandbox, eventually},
    server::Server,
};
use std::{fs, time::Duration};

const SOON: Duration = Duration::from_secs(60);

/// What a guest has its VMM do.
const ATTACKS: [&str; 3] = ["close-lock", "leave-child", "fill-status"];

/// Processes with the user that only this VMM, and what it started, have.
fn family(vmm: u32) -> Vec<u32> {
    let user = users::of_vmm(vmm).to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_owned()
        };
        field("Uid:") == user && field("State:") != "Z"
    })
    .collect()
}

/// A process that its parent has not waited for yet no longer runs.
fn ended(pid: u32) -> Option<()> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|fields| fields.is_empty() || fields.starts_with('Z')).then_some(())
}

#[track_caller]
fn goes_away(vmm: u32, what: &str) {
    let gone = eventually(SOON, || family(vmm).is_empty().then_some(()));
    assert!(gone.is_some(), "{what}: processes {:?} live on", family(vmm));
}

/// Makes a sandbox with the program that `cli` gives, and has the guest do the attack. The number is its VMM's.
#[track_caller]
fn taken_over<'h>(home: &'h Home, attack: &str, flags: &[&str], groups: bool) -> (Sandbox<'h>, u32) {
    let cli = if groups { home.cli(["create"]) } else { home.cli_without_groups(["create"]) };
    let made = cli.args(["-m", SMALL]).args(flags).run().succeeds();
    let sandbox = Sandbox::printed(home, &made);
    assert_eq!(sandbox.directory().join("group").is_symlink(), groups, "{:?}", sandbox.directory());
    let vmm = sandbox.vmm_pid();
    let lock = fs::metadata(sandbox.directory().join("lock")).unwrap();
    // The guest cannot know how the connection ends that its VMM carries.
    let _ = sandbox.sh(&drills::asked_from_within(attack));
    let worked = eventually(SOON, || match attack {
        "fill-status" => (fs::metadata(sandbox.directory().join("status.json")).unwrap().len() > 65_536).then_some(()),
        "leave-child" => (!holds(vmm, &lock) && family(vmm).len() > 1).then_some(()),
        _ => (!holds(vmm, &lock)).then_some(()),
    });
    let log = fs::read_to_string(sandbox.directory().join("vmm.log")).unwrap_or_default();
    assert!(worked.is_some(), "{attack} does not work: {log}");
    (sandbox, vmm)
}

fn holds(pid: u32, file: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut files = descriptors.filter_map(|descriptor| fs::metadata(descriptor.path()).ok());
    files.any(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
}

#[test]
fn a_server_ends_a_vmm_that_was_taken_over() {
    if !drills::are_wanted() {
        return;
    }
    let Some(home) = Home::with_drills("", "") else { return };
    let server = Server::start(&home, &sandboxvm_tests::server::small_config());
    for attack in ATTACKS {
        let made = server.create(&serde_json::json!({ "templateID": "base", "timeout": 600 }));
        let id = made["sandboxID"].as_str().unwrap().to_owned();
        let sandbox = Sandbox::called(&home, &id);
        let vmm = sandbox.vmm_pid();
        let _ = sandbox.sh(&drills::asked_from_within(attack));
        let _ = server.ask("DELETE", &format!("/sandboxes/{id}"), None).expect(204);
        goes_away(vmm, attack);
        assert!(!sandbox.directory().exists(), "{attack}");
    }
}

/// Without a group, and with a filter that lets it leave its session, it lives on: so the group ends it, and the session
/// where there is none.
#[test]
fn a_child_outlives_its_sandbox_only_without_group_and_filter() {
    if !drills::are_wanted() {
        return;
    }
    let Some(home) = Home::with_drills("seccomp", "1") else { return };
    let (sandbox, vmm) = taken_over(&home, "leave-child", &[], false);
    let child = family(vmm).into_iter().find(|pid| *pid != vmm).unwrap();
    let _ = home.cli_without_groups(["rm", "-f", &sandbox.id]).run().succeeds();
    assert!(eventually(SOON, || (family(vmm) == [child]).then_some(())).is_some(), "{:?}", family(vmm));
    kill_process(Pid::from_raw(child.cast_signed()).unwrap(), Signal::KILL).unwrap();
    goes_away(vmm, "the test's own kill");

    let (sandbox, vmm) = taken_over(&home, "leave-child", &[], true);
    let _ = home.cli(["rm", "-f", &sandbox.id]).run().succeeds();
    goes_away(vmm, "with a group");
}

/// The copies are in the session of their parent, have its user, and were born into its group.
#[test]
fn the_end_of_a_parent_leaves_its_live_forks_running() {
    let Some(home) = Home::with_kvm() else { return };
    for groups in [true, false] {
        let cli = |arguments: &[&str]| if groups { home.cli(arguments) } else { home.cli_without_groups(arguments) };
        for way in ["rm", "stop", "expiry"] {
            let flags: &[&str] = if way == "expiry" { &["--ttl", "30s=rm"] } else { &[] };
            let made = cli(&["create", "-m", SMALL]).args(flags).run().succeeds();
            let parent = Sandbox::printed(&home, &made);
            let vmm = parent.vmm_pid();
            let forked = cli(&["fork", "-n", "2", &parent.id]).run().succeeds();
            let copies: Vec<Sandbox<'_>> = forked.out().lines().map(|id| Sandbox::called(&home, id)).collect();
            assert_eq!(copies.len(), 2, "{}", forked.transcript());
            match way {
                "rm" => drop(cli(&["rm", "-f", &parent.id]).run().succeeds()),
                "stop" => drop(cli(&["stop", "-t", "1s", &parent.id]).run().succeeds()),
                _ => {}
            }
            assert!(eventually(Duration::from_secs(120), || ended(vmm)).is_some(), "{way}: the parent lives");
            for copy in &copies {
                let _ = copy.sh("true").succeeds();
            }
            // And each of them ends alone.
            let _ = cli(&["rm", "-f", &copies[0].id]).run().succeeds();
            let _ = copies[1].sh("true").succeeds();
            let last = copies[1].vmm_pid();
            let _ = cli(&["rm", "-f", &copies[1].id]).run().succeeds();
            assert!(ended(last).is_some(), "{way}: the last copy lives");
            let _ = cli(&["rm", "-f", &parent.id]).run();
        }
    }
    home.assert_nothing_left();
}
