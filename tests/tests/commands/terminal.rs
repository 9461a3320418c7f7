//! `sandboxvm exec -it`: a shell in the sandbox on the user's terminal.

use sandboxvm_tests::home::{Home, SMALL};

#[test]
fn a_shell_works_on_a_terminal() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let mut terminal = home.cli_on_terminal(&["exec", "-it", &sandbox.id, "--", "sh"], 33, 101);
    // The prompt comes from the guest. The marks are computed, so that the echo of the keys cannot
    // match.
    terminal.expect("# ");
    assert!(!terminal.is_cooked(), "the terminal handles keys instead of the guest");
    terminal.keys("tty; stty size; echo $TERM $((40+2))\r");
    terminal.expect("/dev/pts/");
    terminal.expect("33 101");
    terminal.expect("vt100 42");
    terminal.resize(50, 200);
    terminal.keys("sleep 1; stty size; echo $((40+3))\r");
    terminal.expect("50 200");
    terminal.expect("43");
    // Ctrl-C reaches the program in the guest, and ends neither the shell nor the CLI.
    terminal.keys("sleep 600\r");
    terminal.expect("sleep 600");
    std::thread::sleep(std::time::Duration::from_secs(2));
    terminal.keys("\x03");
    terminal.expect("# ");
    terminal.keys("echo $((40+4))\r");
    terminal.expect("44");
    terminal.keys("exit 3\r");
    assert_eq!(terminal.wait().code(), Some(3));
    assert!(terminal.is_cooked(), "the user's terminal is left in raw mode");
    sandbox.remove();
    home.assert_nothing_left();
}

/// The command ends when its terminal hangs up.
#[test]
fn a_terminal_that_hangs_up_ends_its_command() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let mut terminal =
        home.cli_on_terminal(&["exec", "-it", &sandbox.id, "--", "sh", "-c", "echo up; exec sleep 614"], 24, 80);
    terminal.expect("up");
    terminal.hang_up();
    let gone = sandboxvm_tests::home::eventually(std::time::Duration::from_secs(60), || {
        (sandbox.sh("pgrep -f 'sleep 61[4]'").code() == Some(1)).then_some(())
    });
    assert!(gone.is_some(), "the command outlives its terminal");
    sandbox.remove();
    home.assert_nothing_left();
}
