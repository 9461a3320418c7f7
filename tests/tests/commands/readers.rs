//! A command that follows output ends when the reader of its stdout does, even if nothing more is
//! written.

use sandboxvm_tests::home::{Home, SMALL, eventually};
use std::time::Duration;

#[test]
fn commands_that_follow_output_end_with_their_reader_without_another_line() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let pid = sandbox.exec(["-d", "--", "sh", "-c", "echo one; exec sleep 1000"]).run().succeeds().out();
    let pid = pid.trim();
    let _ = sandbox.sh("echo one >/dev/console").succeeds();
    for arguments in [
        &["logs", "-f", "demo"][..],
        &["logs", "-f", "demo", pid],
        &["events", "-f"],
        &["attach", "demo", pid],
        &["exec", "demo", "--", "sh", "-c", "echo one; trap '' PIPE; sleep 1000"],
    ] {
        let mut run = home.cli(arguments).spawn_unread();
        run.leave_after_line();
        let run = run.finish().exits(141);
        assert!(run.stderr.is_empty(), "{}", run.transcript());
    }
    // The process that `attach` followed keeps running, and that of `exec` ends.
    let left = || (sandbox.sh("pgrep -x sleep").succeeds().out().lines().count() == 1).then_some(());
    assert!(eventually(Duration::from_secs(60), left).is_some(), "the command of `exec` still runs");
    sandbox.remove();
    home.assert_nothing_left();
}
