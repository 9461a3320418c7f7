//! `cp`: files and directories between the host and a sandbox.

use crate::{
    failure::Failure,
    options::{self, shortened},
    progress, runtime,
    signals::Signals,
    stdio::{self, Stream, WriteError},
    supervision, umask,
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

/// Copy files and directories between the host and a running sandbox
#[derive(Debug, Args)]
#[command(
    after_help = "One of SRC and DEST is SANDBOX:PATH, the other a path of the host (write ./a:b for one with a \
    colon in it) or '-'. PATH begins at the sandbox's root.\n\n\
    A file or directory is copied into DEST where that is a directory, and takes its place where it is not; the directory \
    above DEST must be there. Of a directory SRC that ends in '/.', its content is copied. Directories are copied whole, \
    with modes, times, symbolic and hard links, user attributes and holes, and merged into what is there; other file \
    systems mounted in the sandbox, sockets, devices and named pipes are left out. Each file gets its place in one step: a \
    copy that breaks leaves the old one.\n\n\
    With DEST '-' a file's own bytes go to standard output, and of a directory a tar archive. With SRC '-' standard \
    input is always a tar archive, and DEST a directory that is there.\n\n\
    On the host nothing outside DEST is touched, whatever the sandbox sends, and no symbolic link below it is followed."
)]
pub(crate) struct Cp {
    /// What to copy: PATH, SANDBOX:PATH or '-'
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    source: OsString,
    /// Where to: SANDBOX:PATH, PATH or '-'
    #[arg(value_name = "DEST", allow_hyphen_values = true)]
    destination: OsString,
    /// Do nothing: directories are copied whole without this too
    #[arg(short, long)]
    recursive: bool,
    /// Of a symbolic link SRC, copy what it points to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Into the sandbox: keep owners, and set-user-ID and set-group-ID bits; else files belong to the user
    #[arg(short, long)]
    archive: bool,
    /// User of the sandbox to read and write as: NAME or UID, also with :GROUP or :GID; root unless stated
    #[arg(short, long)]
    user: Option<OsString>,
    /// Out of the sandbox: most bytes of files to take, holes counted
    #[arg(long, value_name = "SIZE", default_value = "16G", value_parser = options::size)]
    max_size: u64,
    /// Out of the sandbox: most files, directories and links to take
    #[arg(long, value_name = "N", default_value_t = CopyLimits::default().max_entries)]
    max_files: u64,
}

/// One of the two sides.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Host(PathBuf),
    Stream,
    Sandbox(String, FilePath),
}

impl Side {
    /// As docker has it: a colon before the first slash is a sandbox's.
    fn parse(text: &OsStr) -> Result<Self, Failure> {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        let colon = bytes.iter().position(|byte| matches!(byte, b':' | b'/')).filter(|at| bytes[*at] == b':');
        let Some(colon) = colon.filter(|_| !bytes.starts_with(b".")) else {
            if bytes.is_empty() {
                return Err(Failure::new("SRC and DEST must not be empty: name a file or directory"));
            }
            return Ok(Self::Host(PathBuf::from(text)));
        };
        let sandbox = String::from_utf8(bytes[..colon].to_vec());
        let sandbox =
            sandbox.map_err(|_| Failure::new(format_args!("{}: is no sandbox", shortened(&text.to_owned()))))?;
        let path = &bytes[colon + 1..];
        let absolute = if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() };
        Ok(Self::Sandbox(sandbox, FilePath::try_from(absolute)?))
    }
}

impl Cp {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let user = self.user.as_ref().map(|user| {
            let text = CText::try_from(user.as_bytes().to_vec());
            text.map_err(|error| Failure::new(format_args!("--user {}: {error}", shortened(user))))
        });
        let user = user.transpose()?;
        let sides = (Side::parse(&self.source)?, Side::parse(&self.destination)?);
        let ((Side::Sandbox(sandbox, _), _) | (_, Side::Sandbox(sandbox, _))) = &sides else {
            return Err(Failure::new("neither SRC nor DEST is in a sandbox: write one of them as SANDBOX:PATH"));
        };
        let sandbox = supervision::find(sandbox)?;
        let files = sandbox.files();
        let files = user.map_or(files.clone(), |user| files.as_user(user));
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            match &sides {
                (Side::Sandbox(..), Side::Sandbox(..)) => {
                    Err(Failure::new("SRC and DEST are both in a sandbox: copy by way of the host"))
                }
                (Side::Sandbox(_, from), Side::Host(to)) => self.to_host(&files, from, to, &mut signals).await,
                (Side::Host(from), Side::Sandbox(_, to)) => self.to_sandbox(&files, from, to, &mut signals).await,
                (Side::Sandbox(_, from), Side::Stream) => until_signal(&mut signals, to_stdout(&files, from)).await,
                (Side::Stream, Side::Sandbox(_, to)) => {
                    until_signal(&mut signals, from_stdin(&files, to, self.archive)).await
                }
                // Refused above.
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

/// What a copy cannot hold is no failure, but worth a word.
fn say_what_is_missing(totals: FileTotals) {
    if totals.left_out > 0 {
        Failure::new(format_args!("{} sockets, devices or named pipes were left out", totals.left_out)).report();
    }
    if totals.attributes_lost > 0 {
        let message =
            format!("{} user attributes were left out: the file system there takes none", totals.attributes_lost);
        Failure::new(message).report();
    }
}

/// What is begun is dropped, which gives it up on the other side.
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
            return Err(Failure::new("a tar archive is not for a terminal: redirect standard output, or name a DEST"));
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
        return Err(Failure::new("SRC '-' is a tar archive, which no terminal types: redirect standard input"));
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
    fn sides_are_told_apart_as_docker_does() {
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
