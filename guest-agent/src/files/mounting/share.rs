//! Mounts a live share, and makes the process that mounted it the one that relays it.

use super::mounted::is_mounted;
use super::table::{lock, path_of, refuse_reserved};
use crate::files::failure::{Trouble, failure, refused};
use crate::share::{Endpoints, Relay, listen};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdir, open, statat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::geteuid;
use sandboxvm_protocol::agent::files::FileErrorKind;
use sandboxvm_protocol::agent::share::ShareMount;
use std::ffi::CString;
use std::os::fd::AsRawFd;

/// Maximum size of one read in bytes.
const MAX_READ: u32 = 128 << 10;

/// Mounts the share. Returns the relay that has to run then, or none if the share is mounted already.
pub(in crate::files) fn mount_share(request: &ShareMount) -> Result<Option<Relay>, Trouble> {
    if !geteuid().is_root() {
        let message = "cannot mount a share: only root may do that".to_owned();
        return Err(failure(FileErrorKind::PermissionDenied, None, message));
    }
    let at = request.at.as_bytes();
    // Of two requests at the same time, the second finds the share mounted.
    let _lock = lock().map_err(|errno| refused("lock the list of mounts", at, errno))?;
    if !at.starts_with(b"/") || at == b"/" {
        let message = "the path of a share must be absolute, and not that of the root".to_owned();
        return Err(failure(FileErrorKind::BadRequest, None, message));
    }
    let source = format!("share{}", request.number);
    if is_mounted(&format!(" - fuse {source} ")).map_err(|errno| refused("read the list of mounts", at, errno))? {
        return Ok(None);
    }
    let path = mount_point(at, request.is_directory)?;
    let listen = |port| listen(port).map_err(|errno| refused("listen for a share", at, errno));
    let (listener, holds) = (listen(request.number.port())?, listen(request.number.hold_port())?);
    let device = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| refused("open /dev/fuse, which the kernel of an old machine lacks", at, errno))?;
    let mode = if request.is_directory { libc::S_IFDIR } else { libc::S_IFREG };
    // Any user of the guest may use it: on the host, all of them are one user.
    let options =
        format!("fd={},rootmode={mode:o},user_id=0,group_id=0,allow_other,max_read={MAX_READ}", device.as_raw_fd());
    let options = CString::new(options).map_err(|_| refused("mount a share", at, Errno::INVAL))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, request.read_only);
    mount(source, path.as_slice(), "fuse", flags, options.as_c_str())
        .map_err(|errno| refused("mount a share", at, errno))?;
    Ok(Some(Relay::new(Endpoints { device, listener, holds, path })))
}

/// Returns the path of what the share is mounted on, without links. Creates it if it is missing.
fn mount_point(at: &[u8], is_directory: bool) -> Result<Vec<u8>, Trouble> {
    make_mount_point(at, is_directory).map_err(|errno| refused("make the mount point of a share", at, errno))?;
    let path = open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).and_then(|below| path_of(&below));
    let path = path.map_err(|errno| refused("find the mount point of a share", at, errno))?;
    refuse_reserved(&path, at)?;
    Ok(path)
}

/// Creates what the share is mounted on, and missing directories above it. They belong to root.
fn make_mount_point(at: &[u8], is_directory: bool) -> Result<(), Errno> {
    let make_directory = |path: &[u8]| match mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    };
    let ends = (1..at.len()).filter(|end| at[*end] == b'/');
    for end in ends {
        make_directory(&at[..end])?;
    }
    if is_directory {
        return make_directory(at);
    }
    if statat(CWD, at, AtFlags::empty()).is_err() {
        open(at, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{ffi::OsStrExt, fs::symlink};

    #[test]
    fn links_do_not_lead_a_share_over_the_file_systems_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/proc/self/fdinfo", &link).unwrap();
        let Err(Trouble::Failed(failure)) = mount_point(link.as_os_str().as_bytes(), true) else {
            panic!("it is taken")
        };
        assert_eq!(failure.kind, FileErrorKind::BadRequest, "{}", failure.message);
        let free = dir.path().join("free");
        assert_eq!(mount_point(free.as_os_str().as_bytes(), true).ok(), Some(free.as_os_str().as_bytes().to_vec()));
    }
}
