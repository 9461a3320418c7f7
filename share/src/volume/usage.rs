//! The file that says how much a volume contains, and its lock. All processes of a volume change the volume
//! only while they hold the lock. A change is announced in the file before it is made, so that a process that
//! was killed meanwhile leaves a mark, and the next one counts again.

use rustix::{
    fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2},
    io::{Errno, pread, pwrite},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

const FILE: &str = "usage";
const MAGIC: [u8; 8] = *b"svmuse01";
/// Magic, boot, bytes, names, and whether a change is under way.
const LENGTH: usize = 8 + BOOT + 8 + 8 + 1;
const BOOT: usize = 36;

/// Which boot of the host a file was written in: what was written before a loss of power may be lost in part.
pub type Boot = [u8; BOOT];

/// What a volume contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) names: u64,
}

impl Usage {
    /// Of files that cannot be counted. There is no room beside them, and changes do not alter that.
    pub(super) const UNCOUNTED: Self = Self { bytes: u64::MAX, names: u64::MAX };

    pub(super) fn add(&mut self, bytes: u64, names: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.names = self.names.saturating_add(names);
    }

    pub(super) fn subtract(&mut self, bytes: u64, names: u64) {
        if *self != Self::UNCOUNTED {
            self.bytes = self.bytes.saturating_sub(bytes);
            self.names = self.names.saturating_sub(names);
        }
    }
}

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    Exact(Usage),
    /// A process was killed during a change, the host has booted since, or there is no file yet.
    Unknown,
}

/// The file. One process has it open once.
#[derive(Debug)]
pub(super) struct UsageFile {
    file: Mutex<OwnedFd>,
    boot: Boot,
}

/// The right to change the volume.
#[derive(Debug)]
pub(super) struct Held<'f> {
    file: MutexGuard<'f, OwnedFd>,
    boot: &'f Boot,
}

impl UsageFile {
    pub(super) fn open(volume: impl AsFd, boot: Boot) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = Mutex::new(openat2(volume, FILE, flags, Mode::RUSR | Mode::WUSR, resolve)?);
        Ok(Self { file, boot })
    }

    /// Waits until no other process changes the volume.
    pub(super) fn lock(&self) -> Result<Held<'_>, Errno> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match flock(&*file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                locked => {
                    locked?;
                    return Ok(Held { file, boot: &self.boot });
                }
            }
        }
    }
}

impl Held<'_> {
    pub(super) fn read(&self) -> Result<Recorded, Errno> {
        let mut bytes = [0; LENGTH];
        let count = pread(&*self.file, &mut bytes, 0)?;
        let (head, rest) = bytes.split_at(8 + BOOT);
        if count != LENGTH || head[..8] != MAGIC || head[8..] != *self.boot || rest[16] != 0 {
            return Ok(Recorded::Unknown);
        }
        let number = |at: usize| rest[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(Recorded::Exact(Usage { bytes: number(0), names: number(8) }))
    }

    pub(super) fn write(&self, usage: Usage, is_changing: bool) -> Result<(), Errno> {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend(MAGIC);
        bytes.extend(self.boot);
        bytes.extend(usage.bytes.to_le_bytes());
        bytes.extend(usage.names.to_le_bytes());
        bytes.push(u8::from(is_changing));
        if pwrite(&*self.file, &bytes, 0)? == bytes.len() { Ok(()) } else { Err(Errno::IO) }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Closing the file unlocks it too, at the latest with this process.
        let _ = flock(&*self.file, FlockOperation::Unlock);
    }
}
