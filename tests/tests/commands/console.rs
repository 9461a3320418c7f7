//! `sandboxvm logs` shows the serial console of a sandbox, whether it runs or not.

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
    // The kernel writes only urgent messages to the console, as each character costs the guest two
    // exits.
    let _ = sandbox.sh("echo '<0>a message of the kernel' > /dev/kmsg").succeeds();
    let shown = eventually(Duration::from_secs(5), || logs().contains("a message of the kernel").then_some(()));
    assert!(shown.is_some(), "not in the log: {:?}", logs());
    // Control characters of the guest are escaped, so they cannot control a terminal that shows the
    // log.
    let _ = sandbox.sh("printf '\\033]0;title\\007\\033[2Jafter\\n' > /dev/console").succeeds();
    let shown = eventually(Duration::from_secs(5), || logs().contains("[2Jafter").then_some(()));
    assert!(shown.is_some(), "not in the log: {:?}", logs());
    assert!(!logs().contains('\u{1b}'), "escape sequences are passed on: {:?}", logs());
    let mut terminal = home.cli_on_terminal(&["logs", "talker"], 24, 80);
    terminal.expect("after");
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(!terminal.screen().contains('\u{1b}'), "escape sequences are passed on: {:?}", terminal.screen());
    // Only the last line, of the console and of the VMM's messages.
    let last = home.cli(["logs", "-n", "1", "talker"]).run().succeeds().out();
    assert!(last.ends_with("after\n") && last.lines().count() == 1, "{last:?}");
    let _ = home.cli(["logs", "--vmm", "talker"]).run().succeeds();
}
