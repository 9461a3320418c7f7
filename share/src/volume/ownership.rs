//! Owner and permissions of a file of a volume, as guests and clients see them: an extended attribute. On the
//! host, all files of a volume belong to one user, who can always read and write them.

use crate::root::PERMISSIONS;
use rustix::{
    fs::{XattrFlags, fgetxattr, fsetxattr},
    io::Errno,
};
use std::os::fd::AsFd;

const NAME: &str = "user.sandboxvm.owner";

/// Owner and permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits and the sticky bit.
    pub(crate) mode: u32,
}

impl Ownership {
    /// Reads what was set for a file that is open for reading or writing. A file for which nothing was set, because
    /// its maker was killed, belongs to root.
    pub(crate) fn of(file: impl AsFd, host_mode: u32) -> Self {
        let mut value = [0; 12];
        match fgetxattr(file, NAME, &mut value[..]) {
            Ok(12) => {
                let field = |at: usize| u32::from_le_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
                Self { uid: field(0), gid: field(4), mode: field(8) & PERMISSIONS }
            }
            _ => Self { uid: 0, gid: 0, mode: host_mode & 0o777 },
        }
    }

    /// Sets it for a file that is open for reading or writing.
    pub(crate) fn set(self, file: impl AsFd) -> Result<(), Errno> {
        let mut value = [0; 12];
        for (field, part) in value.chunks_exact_mut(4).zip([self.uid, self.gid, self.mode & PERMISSIONS]) {
            field.copy_from_slice(&part.to_le_bytes());
        }
        fsetxattr(file, NAME, &value, XattrFlags::empty())
    }
}
