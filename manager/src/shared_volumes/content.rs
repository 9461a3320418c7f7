//! Starts the process that serves one request of a client about the files of a volume.

use super::SharedVolumeId;
use crate::{hostile_text::one_line, manager::Manager};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use sandboxvm_share::{
    Limits,
    content::{MAX_FRAME, Request},
};
use std::{
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
};

/// Maximum size in bytes of the last words of a process that are shown.
const MAX_WORDS: u64 = 1024;

/// A process that serves one request.
#[derive(Debug)]
pub struct ContentProcess(Child);

impl ContentProcess {
    /// Waits until the process has ended, and returns its last words if it failed. The thread that started it has to
    /// do so: the process ends with that thread.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(mut self) -> io::Result<Option<String>> {
        let mut words = Vec::new();
        if let Some(stderr) = self.0.stderr.take() {
            stderr.take(MAX_WORDS).read_to_end(&mut words)?;
        }
        let status = self.0.wait()?;
        let words = String::from_utf8_lossy(&words);
        Ok((!status.success()).then(|| format!("{status}: {}", one_line(words.trim()))))
    }
}

impl Manager {
    /// Starts a process of `program` that serves `request` about a volume. Returns the connection on which the body and
    /// the answer follow. Blocks for some milliseconds.
    ///
    /// # Errors
    /// When there is no such volume, or the process cannot be started.
    pub fn serve_content(
        &self,
        program: &Path,
        id: &SharedVolumeId,
        limits: Limits,
        request: &Request,
    ) -> io::Result<(UnixStream, ContentProcess)> {
        serve_in(program, open(&self.home.shared_volume(id))?, limits, request)
    }
}

/// Removes everything in the directory of a volume that was removed, or of a copy of a share.
pub(crate) fn clear(program: &Path, volume: &Path) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg("removal").env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(open(volume)?).stderr(Stdio::piped());
    let words = ContentProcess(command.spawn()?).wait()?;
    words.map_or(Ok(()), |words| Err(io::Error::other(words)))
}

/// Opens the directory of a volume, by a descriptor that only names it.
fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

fn serve_in(
    program: &Path,
    volume: OwnedFd,
    Limits { bytes, names }: Limits,
    request: &Request,
) -> io::Result<(UnixStream, ContentProcess)> {
    let json = serde_json::to_vec(request)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_FRAME);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command.arg(format!("content:{bytes}:{names}")).env_clear().current_dir("/");
    command.stdin(OwnedFd::from(theirs)).stdout(volume).stderr(Stdio::piped());
    let mut process = command.spawn()?;
    // It fits the buffer of the socket.
    let written = ours.write_all(&length.to_le_bytes()).and_then(|()| ours.write_all(&json));
    if let Err(error) = written {
        // It may have ended by itself.
        let _ = process.kill();
        process.wait()?;
        return Err(error);
    }
    Ok((ours, ContentProcess(process)))
}
