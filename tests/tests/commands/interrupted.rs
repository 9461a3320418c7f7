//! What a command reports when its sandbox is reset, removed, expires or ends while the command
//! runs.

use rustix::process::{Pid, Signal, kill_process};
use sandboxvm_tests::{
    cli::patience,
    home::{Home, SMALL, eventually},
};
use std::time::Duration;

const RUNS_ON: &str = "echo begun; exec sleep 1000";

#[test]
fn a_command_says_whether_its_sandbox_was_reset_removed_expired_or_ended() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let attached = |run: &mut sandboxvm_tests::cli::Running| run.wait_for_stdout("begun\n");
    let says = |run: sandboxvm_tests::cli::Running, reason: &str| {
        let run = run.finish().exits(125);
        assert_eq!(run.out(), "begun\n");
        assert_eq!(run.err(), format!("sandboxvm: sandbox demo {reason}\n"), "{}", run.transcript());
    };

    let mut run = sandbox.spawn_sh(RUNS_ON);
    attached(&mut run);
    let _ = home.cli(["reset", "demo"]).run().succeeds();
    says(run, "was reset before the request was completed");

    // This reset replaces the VMM.
    let _ = home.cli(["snapshot", "create", "demo", "kept"]).run().succeeds();
    let mut run = sandbox.spawn_sh(RUNS_ON);
    attached(&mut run);
    let _ = home.cli(["reset", "demo", "kept"]).run().succeeds();
    says(run, "was reset before the request was completed");

    let mut run = sandbox.spawn_sh(RUNS_ON);
    attached(&mut run);
    let _ = home.cli(["rm", "-f", "demo"]).run().succeeds();
    says(run, "was removed before the request was completed");

    // Expiry ends the processes of a sandbox before its machine, so this command has a known exit
    // code.
    let ttl = format!("{}s=rm", 10 * patience());
    let sandbox = home.create(&["-m", SMALL, "--name", "demo", "--ttl", &ttl]);
    let mut run = sandbox.exec(["--", "sh", "-c", RUNS_ON]).deadline(Duration::from_secs(300)).spawn();
    attached(&mut run);
    let run = run.finish().exits(128 + 15);
    assert_eq!(run.err(), "sandboxvm: sandbox demo expired\n", "{}", run.transcript());
    let gone = eventually(Duration::from_secs(60), || (!sandbox.directory().exists()).then_some(()));
    assert!(gone.is_some(), "the sandbox has expired and is still there");

    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let mut run = sandbox.spawn_sh(RUNS_ON);
    attached(&mut run);
    let vmm = Pid::from_raw(sandbox.vmm_pid().cast_signed()).expect("a process has a number");
    kill_process(vmm, Signal::KILL).expect("the VMM is this user's");
    let run = run.finish().exits(125);
    assert!(
        run.err().starts_with("sandboxvm: sandbox demo ended while the command was running: its VMM disappeared"),
        "{}",
        run.transcript()
    );
    sandbox.remove();
    home.remove_snapshots();
    home.assert_nothing_left();
}
