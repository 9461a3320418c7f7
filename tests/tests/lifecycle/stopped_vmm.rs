//! A VMM that stands still: every command about its sandbox reports that within a bounded time, and
//! commands about other sandboxes do not wait for it.

use rustix::process::{Pid, Signal, kill_process};
use sandboxvm_tests::{
    cli::patience,
    home::{Home, SMALL},
};
use std::{
    fs,
    time::{Duration, Instant},
};

#[test]
fn a_vmm_that_stands_still_is_reported_soon_and_delays_no_other_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    let stuck = home.create(&["-m", SMALL, "--name", "stuck"]);
    let other = home.create(&["-m", SMALL, "--name", "other"]);
    let pid = stuck.exec(["-d", "--", "sleep", "1000"]).run().succeeds().out();
    let pid = pid.trim();
    let (here, there) = (home.scratch("here"), home.scratch("there"));
    fs::write(&here, "x").expect("the test's directory can be written");
    let (here, there) = (here.to_str().expect("UTF-8"), there.to_str().expect("UTF-8"));
    let vmm = Pid::from_raw(stuck.vmm_pid().cast_signed()).expect("a process has a number");
    kill_process(vmm, Signal::STOP).expect("the VMM is this user's");

    let began = Instant::now();
    let asked: Vec<_> = [
        &["ps", "stuck"][..],
        &["exec", "stuck", "--", "true"],
        &["cp", "stuck:/etc/passwd", there],
        &["cp", "stuck:/etc/passwd", "-"],
        &["cp", here, "stuck:/tmp/x"],
        &["kill", "stuck", pid],
        &["wait", "stuck", pid],
        &["attach", "stuck", pid],
        &["logs", "stuck", pid],
        &["pause", "stuck"],
        &["stats", "stuck"],
    ]
    .map(|arguments| home.cli(arguments).spawn())
    .into();
    // Commands about other sandboxes, meanwhile.
    for arguments in [&["ls"][..], &["stats"], &["prune"], &["exec", "other", "--", "true"], &["ps", "other"]] {
        let run = home.cli(arguments).run().succeeds();
        assert!(run.elapsed < Duration::from_secs(5) * patience(), "{}", run.transcript());
    }
    for run in asked {
        let run = run.finish().fails_with(&["sandbox stuck does not answer: its VMM did not answer within 5 s"]);
        let hint = "\nsandboxvm: hint: `sandboxvm rm -f stuck` ends and removes it\n";
        assert!(run.err().ends_with(hint), "{}", run.transcript());
    }
    let bound = Duration::from_secs(20) * patience();
    assert!(began.elapsed() < bound, "{:?}", began.elapsed());
    assert!(!fs::exists(there).expect("the test's directory can be read"));

    let _ = home.cli(["rm", "-f", "stuck"]).run().succeeds();
    other.remove();
    home.assert_nothing_left();
}
