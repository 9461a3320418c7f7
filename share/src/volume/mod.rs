//! A volume: a directory that several sandboxes and clients of the content API write at the same time, each
//! through a separate process. Has limits, and owners that exist in no user database of the host.
//!
//! ```text
//! files/     what guests and clients see
//! nameless/  files without a name that are still in use
//! usage      how much there is, and the lock of every change
//! ```

mod charge;
mod count;
mod nameless;
pub(crate) mod ownership;
pub(crate) mod quota;
mod usage;

pub use quota::Limits;
pub use usage::Boot;

use crate::root::{self, RootError};
use quota::Quota;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The directory of a volume's files, in that of the volume.
pub const FILES: &str = "files";

/// An open volume.
#[derive(Debug)]
pub struct Volume {
    pub(crate) quota: Quota,
}

impl Volume {
    /// Opens the volume at `path`, which is trusted. Counts its files if that is needed.
    ///
    /// # Errors
    /// When it is not a volume, or cannot be used.
    pub fn open(path: &Path, limits: Limits, boot: Boot) -> Result<Self, RootError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let volume = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty())?;
        let files = root::open_below(&volume, FILES.as_bytes())?;
        Ok(Self { quota: Quota::open(&volume, files, limits, boot)? })
    }
}

/// Makes the directories of a new volume in `path`, and returns them. They belong to the caller.
///
/// # Errors
/// When they cannot be made, or the file system has no extended attributes of users.
pub fn prepare(path: &Path) -> io::Result<[PathBuf; 2]> {
    let (files, nameless) = (path.join(FILES), path.join(nameless::DIRECTORY));
    for directory in [&files, &nameless] {
        DirBuilder::new().mode(0o700).create(directory)?;
    }
    // Every user of a sandbox may write a volume.
    let everybody = ownership::Ownership { uid: 0, gid: 0, mode: 0o777 };
    everybody.set(File::open(&files)?)?;
    Ok([files, nameless])
}

/// Returns the boot of this host. Before the process is confined: it is a file of the host.
#[must_use]
pub fn boot() -> Boot {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Without it, the files are counted at each start: no file has this one.
    text.first_chunk().copied().unwrap_or([0; 36])
}
