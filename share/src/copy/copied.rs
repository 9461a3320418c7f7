//! What the process that serves a copy knows of it: which of its files is which of the source, and how much of its
//! file system has to stay free.

use super::{ENTRY, IDENTITIES};
use crate::root::Identity;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, fstatvfs, openat2},
    io::Errno,
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Maximum length of the table in bytes: more than any copy has.
const MAX_TABLE: u64 = 64 << 20;

/// A copy of a share.
#[derive(Debug)]
pub struct Copied {
    identities: HashMap<Identity, Identity>,
    /// Bytes of the file system that the guest cannot take.
    floor: u64,
    /// Held while space is taken, so that two requests do not take the same.
    taking: Mutex<()>,
}

impl Copied {
    /// Opens the directory of a copy, whose path is trusted.
    ///
    /// # Errors
    /// When the table cannot be read, as that of a copy that was not completed.
    pub fn open(path: &Path, floor: u64) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let table = openat2(CWD, path.join(IDENTITIES), flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
        let mut bytes = Vec::new();
        File::from(table).take(MAX_TABLE).read_to_end(&mut bytes)?;
        let entries = bytes.chunks_exact(ENTRY).map(|entry| {
            let field = |at: usize| {
                let bytes: [u8; 8] = std::array::from_fn(|byte| entry[8 * at + byte]);
                u64::from_le_bytes(bytes)
            };
            (Identity::from([field(0), field(1), field(2)]), Identity::from([field(3), field(4), field(5)]))
        });
        Ok(Self { identities: entries.collect(), floor, taking: Mutex::default() })
    }

    /// Returns which file of the copy a file of the source is. Others stay what they are.
    pub(crate) fn identity_of(&self, of_source: Identity) -> Identity {
        self.identities.get(&of_source).copied().unwrap_or(of_source)
    }

    /// Allows the guest to take `bytes` of the file system of the copy, which is that of all sandboxes, while the result
    /// is kept. Fails if less than the floor would be left.
    pub(crate) fn take_room(&self, root: impl AsFd, bytes: u64) -> Result<MutexGuard<'_, ()>, Errno> {
        // A panic while the lock is held changes nothing that it protects.
        let taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let room = fstatvfs(root)?;
        let left = room.f_bavail.saturating_mul(room.f_frsize);
        if left < self.floor.saturating_add(bytes) { Err(Errno::NOSPC) } else { Ok(taking) }
    }
}
