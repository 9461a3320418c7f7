//! `sandboxvm logs`: the serial console of a sandbox, running or not.

use sandboxvm_tests::home::{Home, SMALL, eventually};
use std::time::Duration;

#[test]
fn the_console_is_kept_and_shown() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "talker"]);
    let _ = sandbox.sh("echo a line for the console > /dev/console").succeeds();
    let logs = || home.cli(["logs", "talker"]).run().succeeds().out();
    let shown = eventually(Duration::from_secs(5), || logs().contains("a line for the console").then_some(()));
    assert!(shown.is_some(), "not in the log: {:?}", logs());
    // Kernel messages get there too, if they are urgent: each character costs the guest two exits.
    let _ = sandbox.sh("echo '<0>a message of the kernel' > /dev/kmsg").succeeds();
    let shown = eventually(Duration::from_secs(5), || logs().contains("a message of the kernel").then_some(()));
    assert!(shown.is_some(), "not in the log: {:?}", logs());
    // Nothing that reads the log is driven by what a guest writes: control characters are spelled out.
    let _ = sandbox.sh("printf '\\033]0;title\\007\\033[2Jafter\\n' > /dev/console").succeeds();
    let shown = eventually(Duration::from_secs(5), || logs().contains("[2Jafter").then_some(()));
    assert!(shown.is_some(), "not in the log: {:?}", logs());
    assert!(!logs().contains('\u{1b}'), "escape sequences are passed on: {:?}", logs());
    let mut terminal = home.cli_on_terminal(&["logs", "talker"], 24, 80);
    terminal.expect("after");
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(!terminal.screen().contains('\u{1b}'), "escape sequences are passed on: {:?}", terminal.screen());
    // The end alone, and that of the monitor.
    let last = home.cli(["logs", "-n", "1", "talker"]).run().succeeds().out();
    assert!(last.ends_with("after\n") && last.lines().count() == 1, "{last:?}");
    let _ = home.cli(["logs", "--vmm", "talker"]).run().succeeds();
}
