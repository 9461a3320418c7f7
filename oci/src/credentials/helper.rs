//! Docker's credential helpers: programs that keep credentials. They run with a time limit, and
//! their output, which may contain a secret, reaches no error.

use crate::registry::Credentials;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use std::{
    ffi::OsStr,
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Time after which a helper is killed. Some ask a person for a password.
pub(super) const TIME: Duration = Duration::from_secs(60);
/// Maximum size in bytes of the answer of a helper.
const MAX_ANSWER: u64 = 256 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// A running helper. Dropping it ends the helper and the processes that it started.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        // Not after it was waited for: its ID may be that of another process then.
        let Some(mut child) = self.0.take() else { return };
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait();
    }
}

/// Returns the program of a helper.
pub(super) fn program(name: &str) -> Result<String, String> {
    // A name, so that the program is one of `PATH`.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.bytes().all(is_name) {
        Ok(format!("docker-credential-{name}"))
    } else {
        Err("invalid credential helper".into())
    }
}

/// Asks a helper for the credentials of `address`. Returns `None` if it has none. Blocks the thread,
/// at most for `time`.
pub(super) fn get(program: &OsStr, address: &str, time: Duration) -> Result<Option<Credentials>, String> {
    let (shown, begun) = (program.to_string_lossy(), Instant::now());
    let spawned = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(|error| format!("cannot start {shown}: {error}"))?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut running = Running(Some(child));
    let (Some(mut input), Some(output)) = (input, output) else { return Err(format!("cannot start {shown}")) };
    // An address is shorter than a pipe, and a helper that reads nothing may know one address alone.
    let _ = input.write_all(address.as_bytes());
    drop(input);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.take(MAX_ANSWER).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    });
    let late = || format!("{shown} does not answer within {} seconds", time.as_secs());
    let read = receiver.recv_timeout(time).map_err(|_| late())?;
    let bytes = read.map_err(|error| format!("cannot read from {shown}: {error}"))?;
    let status = loop {
        match running.0.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => break status,
            Some(Ok(None)) if begun.elapsed() < time => thread::sleep(Duration::from_millis(5)),
            _ => return Err(late()),
        }
    };
    running.0 = None;
    if !status.success() {
        let is_missing = String::from_utf8_lossy(&bytes).contains("credentials not found");
        return if is_missing { Ok(None) } else { Err(format!("{shown} failed")) };
    }
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| format!("the answer of {shown} is not valid"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Password { user: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Runs a helper with this text, for at most a second.
    fn answer(script: &str) -> Result<Option<Credentials>, String> {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("docker-credential-test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        get(path.as_os_str(), "a.example", Duration::from_secs(1))
    }

    #[test]
    fn helper_answers_for_the_address_that_it_reads() {
        let found =
            answer("read address; echo \"{\\\"Username\\\": \\\"$1\\\", \\\"Secret\\\": \\\"$address\\\"}\"").unwrap();
        assert_eq!(found, Some(Credentials::Password { user: "get".into(), password: "a.example".into() }));
        let token = answer("echo '{\"ServerURL\": \"x\", \"Username\": \"<token>\", \"Secret\": \"t\"}'").unwrap();
        assert_eq!(token, Some(Credentials::IdentityToken("t".into())));
        let none = answer("echo credentials not found in native keychain; exit 1").unwrap();
        assert_eq!(none, None);
    }

    #[test]
    fn failures_name_the_helper_and_keep_its_output() {
        for (script, expected) in [
            ("echo secret; exit 1", "docker-credential-test failed"),
            ("echo '{\"Username\": \"secret\"}'", "docker-credential-test is not valid"),
            ("exec sleep 50", "docker-credential-test does not answer within 1 seconds"),
            ("sleep 50 & exit 0", "docker-credential-test does not answer within 1 seconds"),
            ("exec >&-; sleep 50", "docker-credential-test does not answer within 1 seconds"),
        ] {
            let begun = Instant::now();
            let error = answer(script).unwrap_err();
            assert!(error.ends_with(expected) && !error.contains("secret"), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(40));
        }
        assert!(program("../x").is_err());
    }
}
