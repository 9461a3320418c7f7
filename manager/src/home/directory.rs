//! The directory of one sandbox: its files by name, reached through a descriptor, so that renaming
//! the directory (staging to sandboxes, sandboxes to trash) never affects a process that uses it.
//! May not follow a symbolic link in the directory.
//!
//! ```text
//! config.json   `record`, written once
//! status.json   `VmStatus`, written by the VMM
//! lock          flock held by the VMM for its life
//! control.sock  VMM's control socket          vsock.sock  guest's vsock ports
//! console.log   serial console, bounded       vmm.log     VMM's own messages
//! supervision.json, supervisor.*   ports and rules that the supervisor maintains (`supervision`)
//! use, idle.paused   whether it is used, for its idle rule (`in_use`)
//! ending        why its machine is being ended, for those who use it (`interruption`)
//! identity.due  empty; the machine has not received its identity yet (`identity`)
//! cgroup        path of the control group of its processor share (`cpu_share`)
//! unkept.*      limits not in force (`limits::kept`)
//! lineage.json  which files its disk and memory consist of (`lineage`); changed under change.lock
//! template      raw image below the disk's layers
//! image, agent  the read-only disks, where they could be linked
//! disk.<n>      layers of its disk
//! slot.<n>, workspace.index   files of its workspace, read-only (`workspace::files`)
//! workspace.due   empty; its machine may not have mounted its workspace yet (`workspace::mounting`)
//! mounts.due    empty; its machine may not have mounted what it has beside its root yet (`mounts::mounting`)
//! workspace/changes.tar   changes of its workspace when its command had ended (`workspace::changes`)
//! memory.<n>, state.<n>   of snapshots that it started from or was compared with
//! ```

use crate::{
    clock,
    home::flock::{self, Sharing},
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
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
/// What its network reaches.
pub(crate) const NETWORK: &str = "network.json";
/// The values of the secrets of its network.
pub(crate) const NETWORK_SECRETS: &str = "network.secrets";
pub(crate) const STATUS: &str = "status.json";
pub(crate) const LOCK: &str = "lock";
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";
pub(crate) const CONSOLE_LOG: &str = "console.log";
pub(crate) const VMM_LOG: &str = "vmm.log";

/// Maximum length of a socket path: `sun_path` has 108 bytes with its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A failed file operation in the directory of a sandbox.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", .path.display())]
pub struct DirectoryError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl DirectoryError {
    /// Returns true if the directory or file does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    pub(crate) fn is_would_block(&self) -> bool {
        self.source.kind() == io::ErrorKind::WouldBlock
    }

    /// Returns true if the disk failed to read the file, which may be intact.
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

/// An open sandbox directory. The path is the one at which it was opened, for messages.
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

    /// Creates the directory, which must not exist.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(|e| DirectoryError::new("create", &path, e))?;
        Self::open(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the directory was opened, as time since the host's boot.
    pub(crate) fn opened_at(&self) -> Duration {
        self.opened_at
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Moves the directory to `path`, which must not exist.
    pub(crate) fn rename_to(&mut self, path: PathBuf) -> Result<()> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(CWD, &self.path, CWD, &path, flags)
            .map_err(|e| DirectoryError::new("move into place", &path, e))?;
        self.path = path;
        Ok(())
    }

    /// Exchanges the directory with the one at `path` in one step. Returns where the other one is then.
    pub(crate) fn exchange_with(&mut self, path: PathBuf) -> Result<PathBuf> {
        rustix::fs::renameat_with(CWD, &self.path, CWD, &path, rustix::fs::RenameFlags::EXCHANGE)
            .map_err(|e| DirectoryError::new("move into place", &path, e))?;
        Ok(std::mem::replace(&mut self.path, path))
    }

    /// Claims the directory for the maker or owner of the sandbox, as long as this value lives.
    /// Sweeps do not modify claimed directories. Returns false if another process has claimed it.
    pub(crate) fn try_claim(&self) -> Result<bool> {
        flock::try_take(Sharing::Exclusive, &self.fd).map_err(|error| self.error("claim", "", error))
    }

    pub(crate) fn error(&self, what: &'static str, name: &str, source: impl Into<io::Error>) -> DirectoryError {
        DirectoryError::new(what, self.path.join(name), source)
    }

    /// Opens an existing regular file, and nothing else: a directory may come from elsewhere, a FIFO in it would wait for
    /// a writer without end, and opening a device can have an effect on it.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags) -> Result<File> {
        let stat =
            rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| self.error("open", name, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.error("open", name, io::Error::other("it is not a regular file")));
        }
        // NONBLOCK means nothing for a regular file. It is for what has taken its place since.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .map(File::from)
            .map_err(|e| self.error("open", name, e))
    }

    /// Creates a file with mode 0600, open for reading and writing. The file must not exist.
    pub(crate) fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| self.error("create", name, e))
    }

    /// Creates a file with `content`. Only for a directory that no other process sees yet:
    /// elsewhere a reader could see an incomplete file.
    pub(crate) fn write_new(&self, name: &str, content: &[u8]) -> Result<()> {
        self.create_file(name)?.write_all(content).map_err(|e| self.error("write", name, e))
    }

    /// Reads a small file completely. Fails if it has more than `cap` bytes.
    pub(crate) fn read(&self, name: &str, cap: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = self.open_file(name, OFlags::RDONLY)?.take(cap + 1).read_to_end(&mut content);
        match read {
            Ok(n) if n as u64 <= cap => Ok(content),
            Ok(_) => Err(self.error("read", name, io::Error::other(format!("it is longer than {cap} bytes")))),
            Err(error) => Err(self.error("read", name, error)),
        }
    }

    /// Reads at most the first `cap` bytes of a file that a hostile process may have written.
    pub(crate) fn read_beginning(&self, name: &str, cap: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_file(name, OFlags::RDONLY)?
            .take(cap)
            .read_to_end(&mut content)
            .map_err(|e| self.error("read", name, e))?;
        Ok(content)
    }

    /// Reads at most the last `cap` bytes of a file. Returns nothing if it does not exist.
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

    /// Creates a listening Unix socket with mode 0600.
    pub(crate) fn listen(&self, name: &str) -> Result<UnixListener> {
        let path = self.socket_path(name);
        let listener = UnixListener::bind(&path).map_err(|e| self.error("listen on", name, e))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(|e| self.error("protect", name, e))?;
        Ok(listener)
    }

    /// Connects to a Unix socket if the owner of the directory, or root, made it. The process
    /// behind the socket cannot check who connects, because a VMM knows no user of the host: the
    /// modes of the socket and of the directory decide who may connect.
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

    /// Returns a path of a socket that fits `sun_path`, no matter how deep the home is.
    fn socket_path(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        if path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH {
            path
        } else {
            PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
        }
    }

    /// Returns true while the path still leads to this directory.
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
    fn only_regular_files_are_opened() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::open(home.path().to_owned()).unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        assert_eq!(directory.read("file", 1).unwrap(), b"x");
        // An ordinary open(2) of a FIFO without a writer would not return.
        for name in ["fifo", "link", "directory"] {
            assert!(directory.read(name, 1).unwrap_err().to_string().contains("not a regular file"), "{name}");
        }
        assert!(directory.read("missing", 1).unwrap_err().is_not_found());
    }

    #[test]
    fn reads_are_limited_and_tails_are_returned() {
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

    #[test]
    fn directories_change_places_with_their_files() {
        let home = tempfile::tempdir().unwrap();
        let [new, old] = ["new", "old"].map(|name| home.path().join(name));
        let mut dir = SandboxDirectory::create(new.clone()).unwrap();
        dir.write_new("file", b"new").unwrap();
        assert!(dir.exchange_with(old.clone()).is_err() && dir.path() == new, "there is nothing to exchange it with");
        SandboxDirectory::create(old.clone()).unwrap().write_new("file", b"old").unwrap();
        assert!(dir.rename_to(old.clone()).unwrap_err().is_already_there());
        assert_eq!(dir.exchange_with(old.clone()).unwrap(), new);
        let read = |path| SandboxDirectory::open(path).unwrap().read("file", 9).unwrap();
        assert_eq!((dir.path(), read(old.clone()), read(new)), (old.as_path(), b"new".to_vec(), b"old".to_vec()));
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
    async fn socket_of_another_user_is_rejected() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let dir = SandboxDirectory::create(home.path().join("x")).unwrap();
        let listener = dir.listen("s.sock").unwrap();
        // The maker of a socket is the last user that called listen(2) on it.
        let other = std::thread::spawn(move || {
            let user = rustix::process::Uid::from_raw(64_999);
            // Changes the user of this thread alone, which ends immediately.
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            rustix::net::listen(&listener, 1).unwrap();
            listener
        });
        let _listener = other.join().unwrap();
        let error = dir.connect("s.sock").await.unwrap_err().to_string();
        assert!(error.contains("user 64999 created it"), "{error}");
    }

    #[test]
    fn moved_directory_is_still_usable() {
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
    fn claim_lasts_as_long_as_its_holder() {
        let home = tempfile::tempdir().unwrap();
        let dir = SandboxDirectory::create(home.path().join("a")).unwrap();
        assert!(dir.try_claim().unwrap());
        let other = SandboxDirectory::open(home.path().join("a")).unwrap();
        assert!(!other.try_claim().unwrap());
        drop(dir);
        assert!(other.try_claim().unwrap());
    }
}
