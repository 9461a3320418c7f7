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
    // Kernel messages get there too.
    let _ = sandbox.sh("echo '<1>a message of the kernel' > /dev/kmsg").succeeds();
    let shown = eventually(Duration::from_secs(5), || logs().contains("a message of the kernel").then_some(()));
    assert!(shown.is_some(), "not in the log: {:?}", logs());
    // What a guest writes there cannot take over the terminal of whoever reads it.
    let _ = sandbox.sh("printf '\\033]0;title\\007\\033[2J\\n' > /dev/console").succeeds();
    let _ = sandbox.sh("echo last > /dev/console").succeeds();
    let _ = eventually(Duration::from_secs(5), || logs().contains("last").then_some(()));
    assert!(!logs().contains('\u{1b}'), "escape sequences are passed through: {:?}", logs());
}
