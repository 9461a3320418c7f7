//! `sandboxvm run`: one command in a separate machine, which ends with the command.

use sandboxvm_tests::{
    cli::patience,
    home::{Home, SMALL, Sandbox, eventually},
};
use std::time::Duration;

#[test]
fn a_program_runs_on_the_guests_kernel() {
    let Some(home) = Home::with_kvm() else { return };
    let run = home.cli(["run", "-m", SMALL, "--", "uname", "-r"]).run().succeeds();
    assert_eq!(run.out(), format!("{}\n", home.artefacts().kernel_release()));
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    assert_ne!(run.out().trim(), host.trim(), "the program runs on the host's kernel");
    assert!(home.listed().is_empty());
    home.assert_nothing_left();
}

#[test]
#[ignore = "soak: the machine that `run` makes without flags has to boot"]
fn a_program_runs_in_a_machine_of_the_default_size() {
    let Some(home) = Home::with_kvm() else { return };
    let script = "import platform; print(platform.release())";
    let run = home.cli(["run", "--", "python3", "-c", script]).run().succeeds();
    assert_eq!(run.out(), format!("{}\n", home.artefacts().kernel_release()));
    home.assert_nothing_left();
}

#[test]
fn run_returns_exit_code_and_streams_and_removes_the_machine() {
    let Some(home) = Home::with_kvm() else { return };
    let script = "printf out; printf err >&2; exit 7";
    let run = home.cli(["run", "-m", SMALL, "--", "sh", "-c", script]).run().exits(7);
    assert_eq!((run.out().as_str(), run.err().as_str()), ("out", "err"));
    home.assert_nothing_left();
}

#[test]
fn all_of_stdin_reaches_the_program() {
    let Some(home) = Home::with_kvm() else { return };
    let input: Vec<u8> = (0u32..300_000).flat_map(u32::to_le_bytes).collect();
    let run = home.cli(["run", "-i", "-m", SMALL, "--", "sha256sum"]).input(input.clone()).run().succeeds();
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&input);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(run.out(), format!("{digest}  -\n"));
    home.assert_nothing_left();
}

#[test]
fn a_signal_is_exit_code_128_plus_its_number() {
    let Some(home) = Home::with_kvm() else { return };
    let run = home.cli(["run", "-m", SMALL, "--", "sh", "-c", "kill -9 $$"]).run();
    let _ = run.exits(128 + 9);
    home.assert_nothing_left();
}

#[test]
fn a_timeout_is_exit_code_124() {
    let Some(home) = Home::with_kvm() else { return };
    let run = home.cli(["run", "-m", SMALL, "--timeout", "1s", "--", "sleep", "600"]).run().exits(124);
    assert!(run.elapsed < Duration::from_secs(60) * patience(), "{}", run.transcript());
    assert!(run.stdout.is_empty(), "{}", run.transcript());
    home.assert_nothing_left();
}

#[test]
fn a_missing_program_is_exit_code_127_and_leaves_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let run = home.cli(["run", "-m", SMALL, "--", "no-such-program"]).run().exits(127);
    assert!(run.err().starts_with("sandboxvm: ") && run.err().contains("no-such-program"), "{}", run.transcript());
    assert!(run.stdout.is_empty(), "{}", run.transcript());
    home.assert_nothing_left();
}

/// As an agent platform uses it: start a command in the background, use the sandbox, remove it.
#[test]
fn a_detached_run_prints_only_the_id_and_keeps_running() {
    let Some(home) = Home::with_kvm() else { return };
    let script = "echo working > /tmp/state; sleep 600";
    let run = home.cli(["run", "-d", "-m", SMALL, "--name", "bg", "--", "sh", "-c", script]).run().succeeds();
    let sandbox = Sandbox::printed(&home, &run);
    assert_eq!(home.listed(), [sandbox.id.as_str()]);
    let state = eventually(Duration::from_secs(20), || {
        let seen = sandbox.sh("cat /tmp/state").out();
        (seen == "working\n").then_some(seen)
    });
    assert!(state.is_some(), "the detached command did not run");
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn a_run_that_is_ended_by_a_signal_ends_its_machine() {
    let Some(home) = Home::with_kvm() else { return };
    let mut run = home.cli(["run", "-m", SMALL, "--", "sh", "-c", "echo up; sleep 600"]).spawn();
    run.wait_for_stdout("up\n");
    run.signal(rustix::process::Signal::TERM);
    let run = run.finish();
    assert_eq!(run.code(), Some(128 + 15), "{}", run.transcript());
    assert!(home.listed().is_empty());
    home.assert_nothing_left();
}
