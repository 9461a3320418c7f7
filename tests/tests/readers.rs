//! A reader of a followed output that goes away: the command ends, also when nothing more is written.

use sandboxvm_tests::home::{Home, SMALL, eventually};
use std::time::Duration;

#[test]
fn what_is_followed_ends_with_its_reader_and_not_with_the_next_line() {
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
    // The process that was only looked at runs on, the one of `exec` does not.
    let left = || (sandbox.sh("pgrep -x sleep").succeeds().out().lines().count() == 1).then_some(());
    assert!(eventually(Duration::from_secs(60), left).is_some(), "the command of `exec` runs on");
    sandbox.remove();
    home.assert_nothing_left();
}
