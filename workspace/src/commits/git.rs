//! Runs git. Owns its environment: no setting of the caller, no hook, no prompt, and no more rights than
//! the owner of the repository has, since git runs what a repository's settings say.

use super::error::CommitsError;
use std::{
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
};

/// Seconds of processor time for one command: what fetching the largest repository takes, and an end for
/// objects that are made to take longer.
const CPU_SECONDS: &str = "1800";
/// Maximum size of a message of git that is kept.
const MAX_MESSAGE: usize = 2000;

/// The exit code of a shell whose command does not exist.
const NOT_FOUND: i32 = 127;

/// The user that git runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// The caller.
    Caller,
    /// Another user, with this ID and group. Only root can become one.
    Other(u32, u32),
}

/// How git runs.
#[derive(Debug)]
pub(super) struct Git<'a> {
    pub(super) user: User,
    /// A directory that the user may use, for the files that git looks for in a home.
    pub(super) home: &'a Path,
}

impl Git<'_> {
    /// Runs a command in a repository. `write` writes its input. Returns its output.
    pub(super) fn run(
        &self,
        repository: &Path,
        arguments: &[&OsStr],
        write: impl FnOnce(&mut dyn Write) -> Result<(), CommitsError> + Send,
    ) -> Result<Vec<u8>, CommitsError> {
        let mut child = self.command(repository, arguments).spawn()?;
        // Its input is written beside, since git may write much before it has read all.
        let (written, output) = thread::scope(|scope| {
            let input = child.stdin.take();
            let writer = scope.spawn(move || input.map_or(Ok(()), |mut input| write(&mut input)));
            let output = child.wait_with_output();
            (writer.join(), output)
        });
        let output = output?;
        if output.status.code() == Some(NOT_FOUND) {
            return Err(CommitsError::NoGit);
        }
        if !output.status.success() {
            return Err(refused(arguments, &output.stderr));
        }
        match written {
            Ok(written) => written?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(output.stdout)
    }

    fn command(&self, repository: &Path, arguments: &[&OsStr]) -> Command {
        // `ulimit` bounds git and needs no code between fork and exec.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -t \"$1\" && ulimit -c 0 && shift && exec git \"$@\"", "sh", CPU_SECONDS]);
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "gc.auto=0",
            "maintenance.auto=false",
            "transfer.fsckObjects=true",
        ] {
            command.args(["-c", setting]);
        }
        command.arg("-C").arg(repository).args(arguments).current_dir("/");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")));
        command.env("HOME", self.home).env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let User::Other(user, group) = self.user {
            command.uid(user).gid(group);
        }
        command
    }
}

fn refused(arguments: &[&OsStr], message: &[u8]) -> CommitsError {
    let command = arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let message = String::from_utf8_lossy(&message[..message.len().min(MAX_MESSAGE)]);
    CommitsError::Git { command, message: message.trim().replace('\n', "; ") }
}
