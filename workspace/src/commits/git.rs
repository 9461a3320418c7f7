//! Runs git. Owns its environment: no setting of the caller, no hook, no prompt, and no more rights than
//! the owner of the repository has, since git runs what a repository's settings say.

use super::error::CommitsError;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufWriter, Read, Seek, Write},
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, ffi::OsStringExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// Seconds of processor time for one command: what fetching the largest repository takes, and an end for
/// objects that are made to take longer.
const CPU_SECONDS: &str = "1800";
/// KiB of address space for one command. Of a guest's objects, git has all but large blobs in memory.
const MEMORY_KIB: &str = "4194304";
/// Maximum time of one command. The owner of the repository can stop it.
const ENDS_WITHIN: Duration = Duration::from_secs(3600);
/// Time between two looks at whether a command has ended.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// Maximum size in bytes of what a command prints: a million references.
const MAX_OUTPUT: usize = 64 << 20;
/// Maximum size of a message of git that is kept.
const MAX_MESSAGE: usize = 2000;
/// The exit code of a shell whose command does not exist.
const NOT_FOUND: i32 = 127;
/// Settings of every command: nothing of the repository's runs by itself, and windows into packs fit the address space.
const SETTINGS: [&str; 10] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "transfer.fsckObjects=true",
    "core.packedGitLimit=512m",
    "core.packedGitWindowSize=32m",
    "core.bigFileThreshold=64m",
    "pack.windowMemory=256m",
    "pack.threads=2",
];

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
    /// A directory with more objects. Its path has no line feed.
    pub(super) objects: Option<&'a Path>,
}

/// Returns a file without a name, to be read from its beginning, with what `write` writes. A pipe could block its
/// writer, since another process of the user may hold the other end.
pub(super) fn input(write: impl FnOnce(&mut dyn Write) -> Result<(), CommitsError>) -> Result<File, CommitsError> {
    let mut file = BufWriter::new(tempfile::tempfile()?);
    write(&mut file)?;
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

impl Git<'_> {
    /// Runs a command in a repository. Returns its output.
    pub(super) fn run(
        &self,
        repository: &Path,
        arguments: &[&OsStr],
        input: Option<File>,
    ) -> Result<Vec<u8>, CommitsError> {
        let mut command = self.command(repository, arguments);
        let mut child = command.stdin(input.map_or_else(Stdio::null, Stdio::from)).spawn()?;
        let finished = finish(&mut child, Instant::now() + ENDS_WITHIN);
        // Its session: what it started, too. Once it was waited for, its number may be another's.
        if finished.is_err() && child.try_wait()?.is_none() {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            child.wait()?;
        }
        let (status, output, message) = finished?;
        match status.code() {
            Some(0) => Ok(output),
            Some(NOT_FOUND) => Err(CommitsError::NoGit),
            _ => Err(refused(arguments, &message)),
        }
    }

    fn command(&self, repository: &Path, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new("/bin/sh");
        let bounded = "ulimit -t \"$1\" && ulimit -v \"$2\" && ulimit -c 0 && shift 2 && exec git \"$@\"";
        command.args(["-c", bounded, "sh", CPU_SECONDS, MEMORY_KIB]);
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", *setting]));
        command.arg("-C").arg(repository).args(arguments).current_dir("/");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")));
        command.env("HOME", self.home).env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        if let Some(objects) = self.objects {
            command.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", quoted(objects));
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let User::Other(user, group) = self.user {
            command.uid(user).gid(group);
        }
        // SAFETY: between fork and exec, setsid(2) is one system call, which touches no memory and takes no lock.
        unsafe {
            // Without the caller's terminal: programs of the repository's settings could write into its input.
            command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?));
        }
        command
    }
}

/// Reads what a process prints until it has ended. Another process that keeps its output open is not waited for.
fn finish(child: &mut Child, deadline: Instant) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), CommitsError> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut output, mut message) = (Vec::new(), Vec::new());
    loop {
        // In this order: what it printed before its end is read.
        let status = child.try_wait()?;
        let mut is_quiet = true;
        is_quiet &= !read_some(&mut stdout, &mut output, MAX_OUTPUT)?;
        is_quiet &= !read_some(&mut stderr, &mut message, MAX_OUTPUT)?;
        if output.len() >= MAX_OUTPUT || message.len() >= MAX_OUTPUT {
            return Err(CommitsError::TooLarge { what: "output of git", limit: MAX_OUTPUT as u64 });
        }
        if let (Some(status), true) = (status, is_quiet) {
            return Ok((status, output, message));
        }
        if Instant::now() >= deadline {
            return Err(CommitsError::TooSlow { limit: ENDS_WITHIN });
        }
        if is_quiet {
            let mut open: Vec<_> = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)]
                .iter()
                .flatten()
                .map(|file| PollFd::from_borrowed_fd(*file, PollFlags::IN))
                .collect();
            match poll(&mut open, Some(&TICK)) {
                // A signal, after which both are looked at again.
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }
}

/// Reads once, if that does not block. Returns false if there was nothing, and closes the file at its end.
fn read_some(file: &mut Option<impl Read + AsFd>, into: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let Some(open) = file else { return Ok(false) };
    let mut ready = [PollFd::new(open, PollFlags::IN)];
    // It does not wait, so no signal interrupts it.
    poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if ready[0].revents().is_empty() {
        return Ok(false);
    }
    let mut buffer = [0; 64 << 10];
    let count = open.read(&mut buffer)?;
    into.extend_from_slice(&buffer[..count.min(limit - into.len())]);
    if count == 0 {
        *file = None;
    }
    Ok(count > 0)
}

/// Writes a path as git reads it in a list of directories, which a colon divides: quoted as in C.
fn quoted(path: &Path) -> OsString {
    let mut quoted = vec![b'"'];
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    OsString::from_vec(quoted)
}

fn refused(arguments: &[&OsStr], message: &[u8]) -> CommitsError {
    let command = arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let message = String::from_utf8_lossy(&message[..message.len().min(MAX_MESSAGE)]);
    CommitsError::Git { command, message: message.trim().replace('\n', "; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    #[test]
    fn what_keeps_the_output_open_is_not_waited_for() {
        let begin = Instant::now();
        let mut child = shell("sleep 20 & echo out; echo err >&2; exit 3");
        let (status, output, message) = finish(&mut child, begin + Duration::from_secs(60)).unwrap();
        assert_eq!((status.code(), &output[..], &message[..]), (Some(3), &b"out\n"[..], &b"err\n"[..]));
        assert!(begin.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn commands_have_an_end_and_a_largest_output() {
        let mut child = shell("sleep 60");
        let error = finish(&mut child, Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CommitsError::TooSlow { .. }), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
        let mut child = shell("yes");
        let error = finish(&mut child, Instant::now() + Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, CommitsError::TooLarge { .. }), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn git_has_a_separate_session_without_a_terminal() {
        let home = tempfile::tempdir().unwrap();
        let git = Git { user: User::Caller, home: home.path(), objects: None };
        // Read as text: where the leader of the session is outside the PID namespace, its number is 0.
        let read = "cut -d ' ' -f 6,7 /proc/self/stat";
        let alias = format!("alias.session=!{read}");
        let output = git.run(home.path(), &["-c", &alias, "session"].map(OsStr::new), None).unwrap();
        let output = String::from_utf8(output).unwrap();
        let (session, terminal) = output.trim().split_once(' ').unwrap();
        let own = shell(read).wait_with_output().unwrap().stdout;
        let own = String::from_utf8(own).unwrap();
        assert_ne!(session, own.split_once(' ').unwrap().0);
        assert_ne!(session, "0");
        assert_eq!(terminal, "0");
    }

    #[test]
    fn paths_are_quoted_for_lists_of_directories() {
        assert_eq!(quoted(Path::new("/a:b/\"c\\d")), r#""/a:b/\"c\\d""#);
    }
}
