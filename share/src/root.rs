//! Opens every file of the share: no other module opens anything below the root. Each
//! call resolves one component, by openat2(2), which leads neither through a link, nor to another mount,
//! nor above the directory that it begins in.

use crate::protocol::Name;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statat, statx},
    io::Errno,
    path::Arg,
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

/// Permissions that a file can have. Set-user-ID and set-group-ID bits do not exist in a share or a volume.
pub(crate) const PERMISSIONS: u32 = 0o1777;
/// What a lookup never does.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Attempts of a lookup that the kernel could not prove to stay beneath, because of a rename.
const ATTEMPTS: u32 = 16;
/// Flags of open(2) that a guest may choose beside the access mode. O_APPEND makes the host's kernel append,
/// so that writes of the host and of the guest do not overwrite each other.
const GUEST_FLAGS: OFlags = OFlags::APPEND.union(OFlags::SYNC).union(OFlags::DSYNC);
/// What each open has: it neither blocks on a named pipe, nor follows a link, nor takes a terminal.
const SAFE_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Why the root cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the root of the share: {0}")]
pub struct RootError(#[from] Errno);

/// Which file a descriptor or a name is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// When it was made, in nanoseconds: a file system gives the number of a removed file to a new one. 0 on file
    /// systems that do not know it.
    birth: u64,
}

impl From<&Statx> for Identity {
    fn from(stat: &Statx) -> Self {
        let born = stat.stx_btime;
        let is_known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let birth = born.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(u64::from(born.tv_nsec));
        Self {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            inode: stat.stx_ino,
            birth: if is_known { birth } else { 0 },
        }
    }
}

impl From<[u64; 3]> for Identity {
    fn from([device, inode, birth]: [u64; 3]) -> Self {
        Self { device, inode, birth }
    }
}

impl From<Identity> for [u64; 3] {
    fn from(identity: Identity) -> Self {
        [identity.device, identity.inode, identity.birth]
    }
}

/// The file or directory that is shared.
#[derive(Debug)]
pub struct Root {
    file: Arc<OwnedFd>,
    /// Its directory and its name there, by which a shared file is opened.
    above: OwnedFd,
    name: Vec<u8>,
    identity: Identity,
}

impl Root {
    /// Opens the root, whose path is trusted.
    ///
    /// # Errors
    /// When there is no such file or directory.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        use std::os::unix::ffi::OsStrExt;
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = openat2(CWD, above, flags, Mode::empty(), ResolveFlags::empty())?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(&above, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
        let stat = examine(&file)?;
        match kind(&stat) {
            libc::S_IFDIR | libc::S_IFREG => {}
            _ => return Err(Errno::INVAL.into()),
        }
        Ok(Self { identity: Identity::from(&stat), file: Arc::new(file), above, name: name.as_bytes().to_vec() })
    }

    pub(crate) fn file(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Opens the shared file itself.
    pub(crate) fn reopen(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = RESOLVE.difference(ResolveFlags::NO_XDEV);
        let file = openat2(&self.above, &self.name[..], flags | SAFE_FLAGS, Mode::empty(), resolve)?;
        expect(&file, self.identity)?;
        Ok(file)
    }
}

/// Returns the attributes of a file.
pub(crate) fn examine(file: impl AsFd) -> Result<Statx, Errno> {
    statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Returns the attributes of what has this name in a directory, without following a link.
pub(crate) fn examine_at(directory: impl AsFd, name: impl Arg) -> Result<Statx, Errno> {
    statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Returns the type of a file, as in its mode.
pub(crate) fn kind(stat: &Statx) -> u32 {
    u32::from(stat.stx_mode) & libc::S_IFMT
}

/// Returns an error if a descriptor is not of this file: it must never be used in its place.
pub(crate) fn expect(file: impl AsFd, identity: Identity) -> Result<Statx, Errno> {
    let stat = examine(file)?;
    if Identity::from(&stat) == identity { Ok(stat) } else { Err(Errno::STALE) }
}

/// Returns what `wanted` of a guest may be.
pub(crate) fn guest_flags(wanted: u32) -> OFlags {
    let wanted = OFlags::from_bits_retain(wanted);
    wanted.intersection(GUEST_FLAGS | OFlags::RWMODE)
}

fn resolve(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut attempts = 0;
    loop {
        match openat2(parent, name, flags | OFlags::CLOEXEC, mode, RESOLVE) {
            Err(Errno::AGAIN) if attempts < ATTEMPTS => attempts += 1,
            Err(Errno::INTR) => {}
            // The kernel reports a link that it did not follow as a loop.
            result => return result,
        }
    }
}

/// Finds an entry of a directory, whatever it is, without opening it.
pub(crate) fn find(parent: impl AsFd, name: Name<'_>) -> Result<OwnedFd, Errno> {
    resolve(parent.as_fd(), name.bytes(), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens an entry of a directory, which must be this file, a regular one or a directory.
pub(crate) fn open(parent: impl AsFd, name: &[u8], flags: OFlags, identity: Identity) -> Result<OwnedFd, Errno> {
    // The name was checked when the node was made. What is there now is checked before it is opened, since
    // opening a device or a named pipe can have effects.
    let found = resolve(parent.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    match kind(&expect(&found, identity)?) {
        libc::S_IFREG | libc::S_IFDIR => {}
        _ => return Err(Errno::OPNOTSUPP),
    }
    let file = resolve(parent.as_fd(), name, flags | SAFE_FLAGS, Mode::empty())?;
    expect(&file, identity)?;
    Ok(file)
}

/// Fails for a directory that the host has moved out of the root since it was found: from there, the kernel
/// goes up nowhere, since the mount of the share does not contain it.
pub(crate) fn expect_inside(directory: impl AsFd) -> Result<(), Errno> {
    match statat(directory, "..", AtFlags::empty()) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => Err(Errno::STALE),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory that was found before.
pub(crate) fn open_directory(directory: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    resolve(directory.as_fd(), b".", flags, Mode::empty())
}

/// Opens a directory in a directory, to read its entries.
pub(crate) fn open_below(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    resolve(parent.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | SAFE_FLAGS, Mode::empty())
}

/// Creates a regular file, or opens the one that is there unless it must be new. As in [`open`], what is there is
/// checked before it is opened.
pub(crate) fn create(parent: impl AsFd, name: Name<'_>, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let is_new = flags.contains(OFlags::EXCL);
    if !is_new
        && let Ok(found) = find(&parent, name)
        && kind(&examine(&found)?) != libc::S_IFREG
    {
        return Err(Errno::EXIST);
    }
    let file = resolve(parent.as_fd(), name.bytes(), flags | OFlags::CREATE | SAFE_FLAGS, mode)?;
    match kind(&examine(&file)?) {
        libc::S_IFREG => Ok(file),
        _ => Err(Errno::EXIST),
    }
}

/// Describes an entry of a directory, without following it.
pub(crate) fn describe(parent: impl AsFd, name: Name<'_>) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    statx(parent, name.bytes(), AtFlags::SYMLINK_NOFOLLOW, wanted)
}
