//! Counts what a volume contains. Under the lock of the volume, so nothing changes meanwhile.

use super::{charge::charge, usage::Usage};
use crate::root::{self, examine_at, kind};
use rustix::{fs::RawDir, io::Errno};
use std::{
    collections::HashSet,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

/// Maximum depth of a tree that is counted: each level takes a descriptor.
const MAX_DEPTH: usize = 4096;
/// Size in bytes of the buffer for entries.
const BUFFER: usize = 32 << 10;

/// Counts all names in a directory, and files with several names once.
pub(super) fn count(directory: OwnedFd) -> Result<Usage, Errno> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut above: Vec<(OwnedFd, Vec<Vec<u8>>)> = Vec::new();
    let mut below = entries(&directory, &mut usage, &mut seen)?;
    let mut at = directory;
    loop {
        match below.pop() {
            Some(name) => {
                if above.len() >= MAX_DEPTH {
                    return Err(Errno::NAMETOOLONG);
                }
                let next = root::open_below(&at, &name)?;
                let of_next = entries(&next, &mut usage, &mut seen)?;
                above.push((std::mem::replace(&mut at, next), std::mem::replace(&mut below, of_next)));
            }
            None => match above.pop() {
                Some((directory, rest)) => (at, below) = (directory, rest),
                None => return Ok(usage),
            },
        }
    }
}

/// Counts the entries of a directory, and returns the directories among them.
fn entries(directory: impl AsFd, usage: &mut Usage, seen: &mut HashSet<u64>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
    let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
    let mut below = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = examine_at(directory.as_fd(), name)?;
        let is_file = kind(&stat) == libc::S_IFREG;
        let is_first = is_file && (stat.stx_nlink <= 1 || seen.insert(stat.stx_ino));
        let size = if is_first { stat.stx_size } else { 0 };
        usage.names = usage.names.saturating_add(1);
        usage.bytes = usage.bytes.saturating_add(charge(size));
        if kind(&stat) == libc::S_IFDIR {
            below.push(name.to_bytes().to_vec());
        }
    }
    Ok(below)
}
