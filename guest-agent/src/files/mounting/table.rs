//! Mounts what a sandbox has beside its root: volumes and file systems in memory. Makes the root read-only
//! at the end. May not touch anything that is mounted already, so a request can be repeated.
//!
//! A volume that was never mounted gets owner, mode and content of the directory that it is mounted on.
//! Until that is done, it has the `lost+found` with which it was made.

use crate::files::archive;
use crate::files::change::make_directories;
use crate::files::failure::{Trouble, failure, refused};
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, fchmod, fchown, flock, fstat, open, readlinkat, statat, syncfs,
    unlinkat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, geteuid, waitpid};
use sandboxvm_archive::{PackOptions, Reader, Trust, UnpackPolicy, Writer};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileReply, FileTotals};
use sandboxvm_protocol::agent::mounts::{Mount, MountTable, MountedSource};
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What two requests at the same time lock. Only root can open it, and processes do not run yet.
const LOCK: &str = "/dev/vdc";
/// Maximum size of the list of mounts that is read, in bytes.
const MAX_MOUNTS_READ: u64 = 4 << 20;
/// The directory that mke2fs makes, and the time that it has then.
const LOST_AND_FOUND: &str = "lost+found";
const MADE_AT: i64 = 1_735_689_600;
/// The directories of the machine: neither they nor anything below them is a place for a mount.
const RESERVED: [&[u8]; 4] = [b"/proc", b"/sys", b"/dev", b"/run/sandboxvm"];

/// Mounts everything in the table that is not mounted yet.
pub(in crate::files) fn mount_all(table: &MountTable) -> Result<FileReply, Trouble> {
    if !geteuid().is_root() {
        let message = "cannot mount file systems: only root may do that".to_owned();
        return Err(failure(FileErrorKind::PermissionDenied, None, message));
    }
    let _lock = lock().map_err(|errno| refused("lock the list of mounts", LOCK.as_bytes(), errno))?;
    for mount in &table.mounts {
        let at = mount.at.as_bytes();
        if !at.starts_with(b"/") || at == b"/" {
            let message = "the path of a mount must be absolute, and not that of the root".to_owned();
            return Err(failure(FileErrorKind::BadRequest, Some(at), message));
        }
        make_directories(at, 0o755)?;
        one(mount)?;
    }
    if table.read_only_root {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOATIME;
        mount_remount("/", flags, c"").map_err(|errno| refused("make the root read-only", b"/", errno))?;
    }
    Ok(FileReply::Done(FileTotals::default()))
}

/// Waits until no other request mounts anything.
pub(super) fn lock() -> Result<OwnedFd, Errno> {
    let disk = open(LOCK, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    flock(&disk, FlockOperation::LockExclusive)?;
    Ok(disk)
}

fn one(request: &Mount) -> Result<(), Trouble> {
    let at = request.at.as_bytes();
    let below = open_directory(at).map_err(|errno| refused("open the directory of the mount", at, errno))?;
    let path = path_of(&below).map_err(|errno| refused("find the directory of the mount", at, errno))?;
    let (source, kind) = match request.source {
        MountedSource::Volume { disk, .. } => (format!("/dev/vd{}", disk.letter()), "ext4"),
        MountedSource::Tmpfs { .. } => ("tmpfs".to_owned(), "tmpfs"),
    };
    if is_mounted(&path, kind, &source).map_err(|errno| refused("read the list of mounts", at, errno))? {
        return Ok(());
    }
    refuse_reserved(&path, at)?;
    let (flags, options) = match request.source {
        MountedSource::Volume { read_only, .. } => {
            // Removed files return their space to the host. A volume that is damaged is not written further.
            let options = if read_only { "errors=remount-ro" } else { "errors=remount-ro,discard" };
            let read_only = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
            (MountFlags::NODEV | MountFlags::NOATIME | read_only, options.to_owned())
        }
        MountedSource::Tmpfs { size, mode, exec } => {
            let exec = if exec { MountFlags::empty() } else { MountFlags::NOEXEC };
            let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
            (MountFlags::NOSUID | MountFlags::NODEV | exec, format!("mode={mode:o}{size}"))
        }
    };
    let options = CString::new(options).map_err(|_| refused("mount it", at, Errno::INVAL))?;
    let step = match request.source {
        MountedSource::Volume { .. } => "mount the volume; its file system may be damaged, or not a file system",
        MountedSource::Tmpfs { .. } => "mount a file system in memory",
    };
    mount(source, path.as_slice(), kind, flags, options.as_c_str()).map_err(|errno| refused(step, at, errno))?;
    if let MountedSource::Volume { read_only: false, .. } = request.source {
        fill(&below, &path)?;
    }
    Ok(())
}

fn open_directory(path: &[u8]) -> Result<OwnedFd, Errno> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Refuses a mount at `path`, which has no symbolic links, where it would hide file systems of the machine. The
/// host checks only the path `at`, which leads there, because it does not know the links of an image.
pub(super) fn refuse_reserved(path: &[u8], at: &[u8]) -> Result<(), Trouble> {
    let is_below = |above: &[u8]| matches!(path.strip_prefix(above), Some([] | [b'/', ..]));
    if [&b"/"[..], b"/run"].contains(&path) || RESERVED.into_iter().any(is_below) {
        let message = "cannot mount anything there: a symbolic link leads to the machine's own file systems".to_owned();
        return Err(failure(FileErrorKind::BadRequest, Some(at), message));
    }
    Ok(())
}

/// Returns the path of an open file, without symbolic links.
pub(super) fn path_of(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    Ok(readlinkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?.into_bytes())
}

/// Returns true if this process's namespace has a mount of this kind and source at `path`.
fn is_mounted(path: &[u8], kind: &str, source: &str) -> Result<bool, Errno> {
    let mounts = open("/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    for line in BufReader::new(File::from(mounts).take(MAX_MOUNTS_READ)).split(b'\n') {
        let line = line.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if is_mount(&line, path, kind, source) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads a line of mountinfo (proc_pid_mountinfo(5)): `36 35 98:0 /root /path options - kind source super`.
fn is_mount(line: &[u8], path: &[u8], kind: &str, source: &str) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    let is_at = words.nth(4).is_some_and(|word| unescaped(word) == path);
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    is_at && words.next() == Some(kind.as_bytes()) && words.next() == Some(source.as_bytes())
}

/// Replaces `\ooo` by the byte with this octal number.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Gives a volume that was never mounted what is in the directory `below`, over which it is mounted at `path`.
fn fill(below: &OwnedFd, path: &[u8]) -> Result<(), Trouble> {
    let fail = |step| move |errno| refused(step, path, errno);
    let volume = open_directory(path).map_err(fail("open the volume"))?;
    match statat(&volume, LOST_AND_FOUND, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(about) if about.st_mtime == MADE_AT => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(fail("look into the volume")(errno)),
    }
    copy(below, &volume, path)?;
    let about = fstat(below).map_err(fail("look at the directory of the mount"))?;
    let (owner, group) = (Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid));
    fchown(&volume, Some(owner), Some(group)).map_err(fail("set the owner of the volume"))?;
    fchmod(&volume, Mode::from_raw_mode(about.st_mode & 0o7777)).map_err(fail("set the mode of the volume"))?;
    // In this order, so that a machine that ends in between copies again.
    syncfs(&volume).map_err(fail("write the content of the image into the volume"))?;
    unlinkat(&volume, LOST_AND_FOUND, AtFlags::REMOVEDIR).map_err(fail("finish the volume"))?;
    // Before any process writes a file, which a second copy would replace.
    syncfs(&volume).map_err(fail("write the volume"))
}

/// Copies the content of a directory: a second process packs it, and this one unpacks it.
fn copy(from: &OwnedFd, to: &OwnedFd, path: &[u8]) -> Result<(), Trouble> {
    let fail = |step| move |errno| refused(step, path, errno);
    let (input, output) = pipe_with(PipeFlags::CLOEXEC).map_err(fail("make a pipe"))?;
    // SAFETY: this process has one thread, so the child's copy of memory is whole.
    let packer = match unsafe { libc::fork() } {
        0 => {
            drop(input);
            let options = PackOptions { follow: false, one_filesystem: true, progress: None };
            let mut writer = Writer::new(File::from(output));
            let packed = sandboxvm_archive::pack(&mut writer, from.as_fd(), b".", b".", options);
            let is_whole = packed.is_ok() && writer.finish().is_ok();
            // SAFETY: ends the process without running any destructor, which the parent runs.
            unsafe { libc::_exit(i32::from(!is_whole)) }
        }
        pid => Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(|| fail("start a process")(Errno::AGAIN))?,
    };
    drop(output);
    let policy = UnpackPolicy {
        trust: Trust::Nothing,
        max_bytes: u64::MAX,
        max_entries: u64::MAX,
        keep_owner: true,
        adopt_root: false,
        umask: 0,
        progress: None,
    };
    let to =
        to.try_clone().map_err(|error| fail("copy a descriptor")(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    // Dropping the reader ends a packer that still writes.
    let unpacked = sandboxvm_archive::unpack(&mut Reader::new(File::from(input)), to, &policy);
    let ended = waitpid(Some(packer), WaitOptions::empty()).map_err(fail("wait for a process"))?;
    unpacked.map_err(|error| archive::unpack_trouble(error, path))?;
    if ended.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
        Ok(())
    } else {
        let message = "cannot read all of the directory of the image that a new volume gets".to_owned();
        Err(failure(FileErrorKind::Other, Some(path), message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_path_kind_and_source() {
        let line = br"36 35 254:48 / /my\040data rw,nodev,noatime shared:1 - ext4 /dev/vdd rw,discard";
        assert!(is_mount(line, b"/my data", "ext4", "/dev/vdd"));
        assert!(!is_mount(line, b"/my data", "ext4", "/dev/vde"));
        assert!(!is_mount(line, b"/my data", "tmpfs", "/dev/vdd"));
        assert!(!is_mount(line, b"/my", "ext4", "/dev/vdd"));
        assert!(!is_mount(b"", b"", "", ""));
        assert!(is_mounted(b"/proc", "proc", "proc").unwrap());
    }

    #[test]
    fn octal_numbers_in_paths_are_read() {
        for (given, expected) in [(r"\040", " "), (r"a\134b", r"a\b"), (r"\04", r"\04"), (r"\999", r"\999"), ("a", "a")]
        {
            assert_eq!(unescaped(given.as_bytes()), expected.as_bytes(), "{given}");
        }
    }

    #[test]
    fn links_do_not_lead_a_mount_over_the_file_systems_of_the_machine() {
        for path in ["/", "/run", "/proc", "/proc/1/fd", "/sys/fs", "/dev", "/run/sandboxvm/x"] {
            refuse_reserved(path.as_bytes(), b"/x").unwrap_err();
        }
        for path in ["/data", "/run/x", "/run/sandboxvm-x", "/process"] {
            refuse_reserved(path.as_bytes(), b"/x").unwrap();
        }
        // A file system that is mounted there by mistake ends with this process.
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc/self/fdinfo", &link).unwrap();
        let at = link.to_str().unwrap().as_bytes().to_vec().try_into().unwrap();
        let trouble = one(&Mount { at, source: MountedSource::Tmpfs { size: None, mode: 0o755, exec: false } });
        let Err(Trouble::Failed(failure)) = trouble else { panic!("{trouble:?}") };
        assert_eq!(failure.kind, FileErrorKind::BadRequest, "{}", failure.message);
    }

    #[test]
    fn a_new_volume_gets_content_owner_and_mode_once() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let (below, volume) = (dir.path().join("below"), dir.path().join("volume"));
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", below.join("link")).unwrap();
        std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o1750)).unwrap();
        std::fs::create_dir_all(volume.join(LOST_AND_FOUND)).unwrap();
        let made = std::time::UNIX_EPOCH + std::time::Duration::from_secs(MADE_AT as u64);
        let set = || File::open(volume.join(LOST_AND_FOUND)).unwrap().set_modified(made).unwrap();
        let path = volume.to_str().unwrap().as_bytes();
        let fill = || fill(&open_directory(below.to_str().unwrap().as_bytes()).unwrap(), path).unwrap();
        // One that was in use, and has another directory of that name.
        File::open(volume.join(LOST_AND_FOUND))
            .unwrap()
            .set_modified(made + std::time::Duration::from_secs(1))
            .unwrap();
        fill();
        assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 1);
        set();
        fill();
        assert_eq!(std::fs::read(volume.join("link")).unwrap(), b"content");
        assert_eq!(volume.metadata().unwrap().mode() & 0o7777, 0o1750);
        assert!(!volume.join(LOST_AND_FOUND).exists());
        std::fs::remove_file(volume.join("file")).unwrap();
        fill();
        assert!(!volume.join("file").exists());
    }
}
