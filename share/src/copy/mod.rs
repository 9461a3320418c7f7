//! Copies a share for a copy of its machine, which then has separate files. What the guest's kernel refers to in
//! the source exists in the copy as another file, so a table says which. The content of the source is hostile: names,
//! sizes and depth are limited, and every file is found as for a request of a guest.
//!
//! ```text
//! files         what the guest sees
//! identities    the table
//! ```

mod copied;
mod data;
mod error;
mod tree;

pub use copied::Copied;
pub use error::CopyError;

use crate::{
    root::{Root, examine, kind},
    volume::Limits,
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::write,
};
use std::{os::fd::OwnedFd, path::Path};
use tree::Copying;

/// Name of the table of identities in the directory of a copy.
const IDENTITIES: &str = "identities";
/// Length in bytes of an entry of the table: device, inode and time of birth of the source's file, and of the copy's.
const ENTRY: usize = 48;

/// Copies what is in `source` into `target`, an empty directory whose path is trusted. Blocks that files of a copy
/// share with those of its source do not count. Devices, named pipes, sockets and what is mounted in the source are
/// left out.
///
/// # Errors
/// Every [`CopyError`]. The target is incomplete then.
pub fn copy(source: &Root, target: &Path, limits: Limits) -> Result<(), CopyError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = openat2(CWD, target, flags, Mode::empty(), ResolveFlags::empty())?;
    let mut copying = Copying::new(limits);
    let stat = examine(source.file())?;
    if kind(&stat) == libc::S_IFDIR {
        copying.tree(source.file(), &target, &stat)?;
    } else {
        copying.shared_file(source.reopen(OFlags::RDONLY)?, &target, &stat)?;
    }
    write_table(&target, copying.identities())
}

fn write_table(target: &OwnedFd, identities: &[[u64; 6]]) -> Result<(), CopyError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat2(target, IDENTITIES, flags, Mode::RUSR | Mode::WUSR, ResolveFlags::BENEATH)?;
    let bytes: Vec<u8> = identities.iter().flatten().flat_map(|field| field.to_le_bytes()).collect();
    let mut written = 0;
    while written < bytes.len() {
        written += write(&file, &bytes[written..])?;
    }
    Ok(())
}
