//! `cp`: copies files and directories between the host and a sandbox.

use crate::{
    failure::Failure,
    options::{
        supervision,
        values::{self, shortened},
    },
    output::progress,
    process_io::signals::Signals,
    runtime,
    stdio::{self, Stream, WriteError},
    umask,
};
use clap::Args;
use rustix::io::Errno;
use sandboxvm_manager::{
    CText, CopyError, CopyLimits, CopyReport, FileError, FileKind, FilePath, FileStream, FileTotals, Files,
};
use std::{
    ffi::{OsStr, OsString},
    future::Future,
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

/// Copy files and directories between the host and a sandbox
#[derive(Debug, Args)]
#[command(
    after_help = "One of SRC and DEST is SANDBOX:PATH; the other is a path on the host, or '-'. PATH is relative to the root \
    directory of the sandbox. Write ./a:b for a path on the host that contains a colon.\n\n\
    If DEST is an existing directory, SRC is copied into it; otherwise the copy becomes DEST, whose parent directory must \
    exist. If SRC is a directory and ends in '/.', its contents are copied instead of the directory itself. Directories are \
    copied recursively and merged with existing ones, with modes, times, symbolic and hard links, user extended attributes \
    and holes. Sockets, devices, named pipes and other file systems mounted in the sandbox are skipped. Each file is replaced \
    in one step: an interrupted copy leaves the old file in place.\n\n\
    With DEST '-', the content of a file is written to standard output, and a directory as a tar archive. With SRC '-', \
    standard input must be a tar archive, and DEST an existing directory.\n\n\
    On the host, nothing outside DEST is changed, whatever the sandbox sends: no symbolic link below DEST is followed."
)]
pub(crate) struct Cp {
    /// File or directory to copy: PATH, SANDBOX:PATH or '-'
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    source: OsString,
    /// Where to copy it: SANDBOX:PATH, PATH or '-'
    #[arg(value_name = "DEST", allow_hyphen_values = true)]
    destination: OsString,
    /// Accepted for docker compatibility; directories are always copied recursively
    #[arg(short, long)]
    recursive: bool,
    /// If SRC is a symbolic link, copy its target instead of the link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Keep owners and the set-user-ID and set-group-ID bits when copying into the sandbox; otherwise files belong to the
    /// user of --user
    #[arg(short, long)]
    archive: bool,
    /// User of the sandbox to read and write files as: NAME or UID, optionally followed by :GROUP or :GID [default: root]
    #[arg(short, long)]
    user: Option<OsString>,
    /// Maximum total size of the files to copy out of the sandbox, including holes
    #[arg(long, help_heading = "Limits", value_name = "SIZE", default_value = "16G", value_parser = values::size)]
    max_size: u64,
    /// Maximum number of files, directories and links to copy out of the sandbox
    #[arg(long, help_heading = "Limits", value_name = "N", default_value_t = CopyLimits::default().max_entries)]
    max_files: u64,
}

/// SRC or DEST.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Host(PathBuf),
    Stream,
    Sandbox(String, FilePath),
}

impl Side {
    /// As in docker: a colon before the first slash separates a sandbox from a path.
    fn parse(text: &OsStr) -> Result<Self, Failure> {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        let colon = bytes.iter().position(|byte| matches!(byte, b':' | b'/')).filter(|at| bytes[*at] == b':');
        let Some(colon) = colon.filter(|_| !bytes.starts_with(b".")) else {
            if bytes.is_empty() {
                return Err(Failure::new("invalid path \"\": SRC and DEST must not be empty"));
            }
            return Ok(Self::Host(PathBuf::from(text)));
        };
        let sandbox = String::from_utf8(bytes[..colon].to_vec());
        let sandbox = sandbox.map_err(|_| {
            Failure::new(format_args!("invalid sandbox name in {}: not valid UTF-8", shortened(&text.to_owned())))
        })?;
        let path = &bytes[colon + 1..];
        let absolute = if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() };
        Ok(Self::Sandbox(sandbox, FilePath::try_from(absolute)?))
    }
}

impl Cp {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let user = self.user.as_ref().map(|user| {
            let text = CText::try_from(user.as_bytes().to_vec());
            text.map_err(|error| Failure::new(format_args!("invalid --user {}: {error}", shortened(user))))
        });
        let user = user.transpose()?;
        let sides = (Side::parse(&self.source)?, Side::parse(&self.destination)?);
        let ((Side::Sandbox(sandbox, _), _) | (_, Side::Sandbox(sandbox, _))) = &sides else {
            let hint = "write one of them as SANDBOX:PATH".to_owned();
            return Err(Failure::new("cannot copy: neither SRC nor DEST is in a sandbox").hinted(hint));
        };
        let sandbox = supervision::find(sandbox)?;
        let files = sandbox.files();
        let files = user.map_or(files.clone(), |user| files.as_user(user));
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            match &sides {
                (Side::Sandbox(..), Side::Sandbox(..)) => {
                    let hint = "copy to the host first".to_owned();
                    Err(Failure::new("cannot copy: SRC and DEST are both in a sandbox").hinted(hint))
                }
                (Side::Sandbox(_, from), Side::Host(to)) => self.to_host(&files, from, to, &mut signals).await,
                (Side::Host(from), Side::Sandbox(_, to)) => self.to_sandbox(&files, from, to, &mut signals).await,
                (Side::Sandbox(_, from), Side::Stream) => until_signal(&mut signals, to_stdout(&files, from)).await,
                (Side::Stream, Side::Sandbox(_, to)) => {
                    until_signal(&mut signals, from_stdin(&files, to, self.archive)).await
                }
                // Rejected above.
                _ => Ok(125),
            }
        })
    }

    async fn to_host(
        &self,
        files: &Files<'_>,
        from: &FilePath,
        to: &Path,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let limits = CopyLimits { max_bytes: self.max_size, max_entries: self.max_files, umask: umask::of_caller() };
        let moved = Arc::new(AtomicU64::new(0));
        let signal = async {
            let _ = signals.next().await;
        };
        let copy = files.copy_out(from, to, self.follow_link, limits, Arc::clone(&moved), signal);
        let copied = progress::transfer("copying", &moved, copy).await;
        finish(copied, signals)
    }

    async fn to_sandbox(
        &self,
        files: &Files<'_>,
        from: &Path,
        to: &FilePath,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let moved = Arc::new(AtomicU64::new(0));
        let signal = async {
            let _ = signals.next().await;
        };
        let copy = files.copy_in(from, to, self.follow_link, self.archive, Arc::clone(&moved), signal);
        let copied = progress::transfer("copying", &moved, copy).await;
        finish(copied, signals)
    }
}

fn finish(copied: Result<CopyReport, CopyError>, signals: &Signals) -> Result<u8, Failure> {
    match copied {
        Ok(report) => {
            say_what_is_missing(report.totals);
            Ok(0)
        }
        Err(CopyError::GivenUp) => Ok(signals.exit_code()),
        Err(error) => Err(error.into()),
    }
}

/// Reports what a copy cannot hold, which is not a failure.
fn say_what_is_missing(totals: FileTotals) {
    if totals.left_out > 0 {
        Failure::new(format_args!("warning: skipped {} sockets, devices or named pipes", totals.left_out)).report();
    }
    if totals.attributes_lost > 0 {
        let lost = totals.attributes_lost;
        let reason = "the file system of the destination does not support them";
        Failure::new(format_args!("warning: skipped {lost} user attributes: {reason}")).report();
    }
}

/// Runs `work` until a signal arrives. Dropping it cancels it in the guest.
async fn until_signal(signals: &mut Signals, work: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let interrupted = tokio::select! {
        done = work => return done,
        interrupted = signals.next() => interrupted,
    };
    Ok(128 + interrupted.0.get())
}

async fn to_stdout(files: &Files<'_>, from: &FilePath) -> Result<u8, Failure> {
    let is_directory = files.stat(from.clone(), true).await?.kind == FileKind::Directory;
    if is_directory {
        if io::stdout().is_terminal() {
            let hint = "redirect standard output, or give a DEST on the host".to_owned();
            return Err(Failure::new("cannot write a tar archive to a terminal").hinted(hint));
        }
        let name = Path::new(OsStr::from_bytes(from.as_bytes())).file_name();
        let name = name.map_or(b".".to_vec(), |name| name.as_bytes().to_vec());
        let is_content = from.as_bytes().ends_with(b"/.");
        let name = FilePath::try_from(if is_content { b".".to_vec() } else { name })?;
        pass_on(files.archive(from.clone(), name, true).await?).await
    } else {
        pass_on(files.read(from.clone()).await?).await
    }
}

async fn pass_on(mut stream: FileStream<'_>) -> Result<u8, Failure> {
    let (sink, mut end) = stdio::output();
    let hung_up = stdio::hung_up();
    tokio::pin!(hung_up);
    let written = 'all: {
        loop {
            let next = tokio::select! {
                next = stream.next() => next?,
                () = &mut hung_up => return Err(stdio::reader_left()),
            };
            let Some(bytes) = next else { break };
            match sink.room().await {
                Some(room) => room.send((Stream::Stdout, bytes)),
                None => break 'all end.wait().await,
            }
        }
        drop(sink);
        end.wait().await
    };
    match written {
        Ok(()) => {
            say_what_is_missing(stream.totals().unwrap_or_default());
            Ok(0)
        }
        Err(WriteError { errno: Errno::PIPE, .. }) => Err(stdio::reader_left()),
        Err(WriteError { errno, .. }) => Err(Failure::new(format_args!("cannot write to stdout: {errno}"))),
    }
}

async fn from_stdin(files: &Files<'_>, to: &FilePath, keep_owner: bool) -> Result<u8, Failure> {
    if io::stdin().is_terminal() {
        let hint = "redirect standard input".to_owned();
        return Err(Failure::new("cannot read a tar archive from a terminal").hinted(hint));
    }
    let mut sink = files.extract(to.clone(), false, keep_owner).await?;
    let mut chunks = stdio::stdin_chunks();
    while let Some(chunk) = chunks.recv().await {
        sink.write(&chunk).await?;
    }
    let done: Result<_, FileError> = sink.finish().await;
    say_what_is_missing(done?.totals());
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_and_destination_are_parsed_as_in_docker() {
        let side = |text: &str| Side::parse(OsStr::new(text)).unwrap();
        let sandbox = |name: &str, path: &str| Side::Sandbox(name.into(), FilePath::try_from(path).unwrap());
        let host = |path: &str| Side::Host(path.into());
        assert_eq!(side("-"), Side::Stream);
        assert_eq!(side("demo:/a/b"), sandbox("demo", "/a/b"));
        assert_eq!(side("demo:a:b"), sandbox("demo", "/a:b"));
        assert_eq!(side("demo:"), sandbox("demo", "/"));
        assert_eq!(side("./demo:a"), host("./demo:a"));
        assert_eq!(side("../x:y"), host("../x:y"));
        assert_eq!(side("/a:b"), host("/a:b"));
        assert_eq!(side("dir/a:b"), host("dir/a:b"));
        assert_eq!(side("plain"), host("plain"));
        assert!(Side::parse(OsStr::new("")).is_err());
    }
}
