//! One sandbox's directory: its files by name, reached through a descriptor, so that renaming the directory (staging to
//! sandboxes, sandboxes to trash) never pulls it from under its user.
//!
//! ```text
//! config.json   `record`, written once
//! status.json   `VmStatus`, written by the VMM
//! lock          flock held by the VMM for its life
//! control.sock  VMM's control socket          vsock.sock  guest's vsock ports
//! console.log   serial console, bounded       vmm.log     VMM's own messages
//! supervision.json, supervisor.*   ports and rules that are kept up for it (`supervision`)
//! use, idle.paused   whether it is used, for its idle rule (`in_use`)
//! ending        why its machine is being ended, for those who use it (`ending`)
//! identity.due  empty; the machine was not yet told who it is (`identity`)
//! cgroup        where the control group of its processor share is (`cpu_share`); unkept.*: limits not in force (`limits`)
//! lineage.json  which files its disk and memory are made of (`lineage`); changed under change.lock
//! template      raw image below the disk's layers; image, agent: the read-only disks, where they could be linked
//! disk.<n>      layers of its disk; memory.<n>, state.<n>: of snapshots it began from or was compared with
//! ```

use crate::clock;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const STATUS: &str = "status.json";
pub(crate) const LOCK: &str = "lock";
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";
pub(crate) const CONSOLE_LOG: &str = "console.log";
pub(crate) const VMM_LOG: &str = "vmm.log";

/// `sun_path` has 108 bytes with its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A file operation in a sandbox's directory failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", .path.display())]
pub struct DirectoryError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl DirectoryError {
    /// True when the directory or file does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    pub(crate) fn is_would_block(&self) -> bool {
        self.source.kind() == io::ErrorKind::WouldBlock
    }

    /// True when the file may be whole and the disk does not give it.
    pub(crate) fn is_disk_failure(&self) -> bool {
        self.source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    }

    pub(crate) fn is_already_there(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }

    pub(crate) fn new(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { what, path: path.into(), source: source.into() }
    }
}

type Result<T> = std::result::Result<T, DirectoryError>;

/// An open sandbox directory. The path is where it was when opened, for messages.
#[derive(Debug)]
pub(crate) struct SandboxDirectory {
    path: PathBuf,
    fd: OwnedFd,
    opened_at: Duration,
}

impl SandboxDirectory {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { path, fd, opened_at: clock::since_boot() }),
            Err(error) => Err(DirectoryError::new("open", path, error)),
        }
    }

    /// Makes the directory; it must not exist.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(|e| DirectoryError::new("create", &path, e))?;
        Self::open(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// When, since the host's boot.
    pub(crate) fn opened_at(&self) -> Duration {
        self.opened_at
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Moves the directory to `path`, where nothing may be yet.
    pub(crate) fn rename_to(&mut self, path: PathBuf) -> Result<()> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(CWD, &self.path, CWD, &path, flags)
            .map_err(|e| DirectoryError::new("move into place", &path, e))?;
        self.path = path;
        Ok(())
    }

    /// Claims the directory for whoever makes or owns the sandbox, as long as this value lives. Sweepers leave claimed
    /// directories alone. False when somebody else has it.
    pub(crate) fn try_claim(&self) -> Result<bool> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(self.error("claim", "", error)),
        }
    }

    pub(crate) fn error(&self, what: &'static str, name: &str, source: impl Into<io::Error>) -> DirectoryError {
        DirectoryError::new(what, self.path.join(name), source)
    }

    /// Opens a file that exists.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags) -> Result<File> {
        rustix::fs::openat(&self.fd, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map(File::from)
            .map_err(|e| self.error("open", name, e))
    }

    /// Makes a file that does not exist yet, 0600, open for reading and writing.
    pub(crate) fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| self.error("create", name, e))
    }

    /// Makes a file with `content`. For a directory nobody else sees yet: elsewhere a reader could meet half of it.
    pub(crate) fn write_new(&self, name: &str, content: &[u8]) -> Result<()> {
        self.create_file(name)?.write_all(content).map_err(|e| self.error("write", name, e))
    }

    /// The whole of a small file.
    pub(crate) fn read(&self, name: &str, cap: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = self.open_file(name, OFlags::RDONLY)?.take(cap + 1).read_to_end(&mut content);
        match read {
            Ok(n) if n as u64 <= cap => Ok(content),
            Ok(_) => Err(self.error("read", name, io::Error::other(format!("it is longer than {cap} bytes")))),
            Err(error) => Err(self.error("read", name, error)),
        }
    }

    /// At most the first `cap` bytes of a file that something hostile may have written.
    pub(crate) fn read_beginning(&self, name: &str, cap: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK)?
            .take(cap)
            .read_to_end(&mut content)
            .map_err(|e| self.error("read", name, e))?;
        Ok(content)
    }

    /// At most the last `cap` bytes of a file; empty when it does not exist.
    pub(crate) fn read_tail(&self, name: &str, cap: u64) -> Result<Vec<u8>> {
        let mut file = match self.open_file(name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        file.metadata()
            .and_then(|metadata| file.seek(SeekFrom::Start(metadata.len().saturating_sub(cap))))
            .and_then(|_| (&mut file).take(cap).read_to_end(&mut content))
            .map_err(|e| self.error("read", name, e))?;
        Ok(content)
    }

    /// A listening Unix socket, 0600.
    pub(crate) fn listen(&self, name: &str) -> Result<UnixListener> {
        let path = self.socket_path(name);
        let listener = UnixListener::bind(&path).map_err(|e| self.error("listen on", name, e))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(|e| self.error("protect", name, e))?;
        Ok(listener)
    }

    /// Connects to a Unix socket, if whoever owns the directory, or root, made it. What is behind it cannot check who
    /// connects: a VMM knows none of the host's users. Who may connect is for the socket's mode and the directory's.
    pub(crate) async fn connect(&self, name: &str) -> Result<UnixStream> {
        let stream =
            UnixStream::connect(self.socket_path(name)).await.map_err(|e| self.error("connect to", name, e))?;
        let maker = stream.peer_cred().map_err(|e| self.error("connect to", name, e))?.uid();
        let owner = rustix::fs::fstat(&self.fd).map_err(|e| self.error("examine", name, e))?.st_uid;
        if maker == owner || maker == 0 {
            return Ok(stream);
        }
        let problem = format!("user {maker} created it, but the directory belongs to user {owner}");
        Err(self.error("trust", name, io::Error::new(io::ErrorKind::PermissionDenied, problem)))
    }

    /// A path of a socket that fits `sun_path` however deep the home is.
    fn socket_path(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        if path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH {
            path
        } else {
            PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
        }
    }

    /// True while the path still leads to this very directory.
    pub(crate) fn exists(&self) -> bool {
        let same = || {
            let here = rustix::fs::fstat(&self.fd)?;
            let there = rustix::fs::statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::io::Result::Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
        };
        same().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_and_caps() {
        let home = tempfile::tempdir().unwrap();
        let dir = SandboxDirectory::create(home.path().join("x")).unwrap();
        dir.write_new("file", b"0123456789").unwrap();
        assert_eq!(dir.read_tail("file", 4).unwrap(), b"6789");
        assert_eq!(dir.read_tail("file", 40).unwrap(), b"0123456789");
        assert_eq!(dir.read_tail("missing", 4).unwrap(), b"");
        assert_eq!(dir.read("file", 10).unwrap(), b"0123456789");
        assert!(dir.read("file", 9).unwrap_err().to_string().contains("longer than 9"));
        assert!(dir.write_new("file", b"").is_err());
    }

    #[tokio::test]
    async fn sockets_work_below_paths_longer_than_sun_path() {
        let home = tempfile::tempdir().unwrap();
        let deep = home.path().join("d".repeat(120));
        let dir = SandboxDirectory::create(deep).unwrap();
        let listener = dir.listen("s.sock").unwrap();
        let mode = dir.path().join("s.sock").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        dir.connect("s.sock").await.unwrap();
        listener.accept().unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_another_user_made_is_not_spoken_to() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let dir = SandboxDirectory::create(home.path().join("x")).unwrap();
        let listener = dir.listen("s.sock").unwrap();
        // A socket's maker is who listens on it last.
        let other = std::thread::spawn(move || {
            let user = rustix::process::Uid::from_raw(64_999);
            // Of this thread alone, which ends at once.
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            rustix::net::listen(&listener, 1).unwrap();
            listener
        });
        let _listener = other.join().unwrap();
        let error = dir.connect("s.sock").await.unwrap_err().to_string();
        assert!(error.contains("user 64999 created it"), "{error}");
    }

    #[test]
    fn a_moved_directory_is_still_usable() {
        let home = tempfile::tempdir().unwrap();
        let mut dir = SandboxDirectory::create(home.path().join("a")).unwrap();
        let other = SandboxDirectory::open(home.path().join("a")).unwrap();
        dir.rename_to(home.path().join("b")).unwrap();
        assert!(dir.exists() && !other.exists());
        other.write_new("file", b"x").unwrap();
        assert_eq!(dir.read("file", 1).unwrap(), b"x");
        std::fs::create_dir(home.path().join("c")).unwrap();
        assert!(dir.rename_to(home.path().join("c")).is_err(), "must not replace");
    }

    #[test]
    fn a_claim_lasts_as_long_as_its_holder() {
        let home = tempfile::tempdir().unwrap();
        let dir = SandboxDirectory::create(home.path().join("a")).unwrap();
        assert!(dir.try_claim().unwrap());
        let other = SandboxDirectory::open(home.path().join("a")).unwrap();
        assert!(!other.try_claim().unwrap());
        drop(dir);
        assert!(other.try_claim().unwrap());
    }
}
