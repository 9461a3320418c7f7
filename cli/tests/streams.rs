//! Standard streams that fail: a reader of stdout that ends, and a full disk below stdout or stderr. Needs no KVM.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

const SANDBOX: &str = "abcdefghabcdefgh";
/// Longest time in which a command has to notice that its reader is gone.
const SOON: Duration = Duration::from_secs(20);

fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxvm"));
    command.args(arguments).env_clear().env("SANDBOXVM_HOME", home).stdin(Stdio::null());
    command
}

fn full() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").expect("a device of every Linux"))
}

/// Returns how a command ends whose reader leaves after `pause`, or `None` if it does not end.
fn end_without_reader(mut command: Command, pause: Duration) -> Option<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    thread::sleep(pause);
    drop(child.stdout.take());
    let left = Instant::now();
    while left.elapsed() < SOON {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    None
}

#[test]
fn commands_that_follow_logs_end_with_their_reader_without_another_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = dir.path().join("home");
    assert!(command(&home, &["ls"]).stdout(Stdio::null()).status().expect("the program starts").success());
    // The log of a sandbox that is gone. It gets no further line.
    fs::create_dir_all(home.join("audit")).expect("our own home");
    fs::write(home.join("audit").join(format!("{SANDBOX}.jsonl")), "{}\n").expect("our own home");
    for arguments in [&["events", "-f"][..], &["events", "-f", SANDBOX], &["network", "log", "-f", SANDBOX]] {
        for pause in [Duration::ZERO, Duration::from_secs(1)] {
            let end = end_without_reader(command(&home, arguments), pause);
            assert_eq!(end.and_then(|end| end.code()), Some(141), "{arguments:?} after {pause:?}");
        }
    }
}

#[test]
fn output_on_a_full_disk_is_a_failure_with_its_reason_and_no_panic() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = dir.path().join("home");
    for arguments in [&["ls"][..], &["ls", "--json"], &["-V"], &["cli-reference"]] {
        let output = command(&home, arguments).stdout(full()).output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {said}");
        assert!(said.starts_with("sandboxvm: ") && said.contains("No space left"), "{arguments:?}: {said}");
    }
    // The message cannot be written either, and the exit code stays.
    for arguments in [&["inspect", "no-such-sandbox"][..], &["no-such-command"], &["run", "--memory", "much"]] {
        let expected = command(&home, arguments).output().expect("the program starts").status;
        let status = command(&home, arguments).stderr(full()).stdout(full()).status().expect("the program starts");
        assert_eq!(status, expected, "{arguments:?}");
        assert_eq!(status.code(), Some(125), "{arguments:?}");
    }
}

#[test]
fn warnings_that_cannot_be_written_end_no_command_and_no_server() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = dir.path().join("home");
    let key = command(&home, &["key", "create", "a"]).stdout(Stdio::null()).status().expect("the program starts");
    assert!(key.success(), "{key}");
    // A listing warns of a sandbox whose record is damaged.
    let damaged = home.join("sandboxes").join(SANDBOX);
    fs::create_dir_all(&damaged).expect("our own home");
    fs::write(damaged.join("config.json"), "{").expect("our own home");
    let warned = command(&home, &["ls"]).output().expect("the program starts");
    let said = String::from_utf8_lossy(&warned.stderr);
    assert!(warned.status.success() && said.contains("warning: cannot list sandbox"), "{said}");
    let listed = command(&home, &["ls"]).stderr(full()).output().expect("the program starts");
    assert!(listed.status.success() && listed.stdout == warned.stdout, "{listed:?}");
    // A server in a home with keys says that it makes none.
    let arguments = ["serve", "--api", "127.0.0.1:0", "--sandboxes", "127.0.0.1:0"];
    let mut server =
        command(&home, &arguments).stdout(Stdio::piped()).stderr(full()).spawn().expect("the program starts");
    let mut address = String::new();
    BufReader::new(server.stdout.take().expect("stdout is piped")).read_line(&mut address).expect("a line of text");
    let over = server.try_wait().expect("a child can be waited for");
    server.kill().expect("a child can be killed");
    server.wait().expect("a child can be waited for");
    assert!(over.is_none() && address.starts_with("export E2B_API_URL="), "{over:?} {address:?}");
}
