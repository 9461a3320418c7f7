//! Extended attributes: those of the namespace `user`, of files and directories. The others have a meaning
//! to the host's kernel, and do not exist for the guest.

use super::{Outcome, Server};
use crate::protocol::{MAX_DATA, Reply};
use rustix::{
    fs::{OFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr},
    io::Errno,
};
use std::os::fd::OwnedFd;

const NAMESPACE: &[u8] = b"user.";
/// Maximum length of a name in bytes.
const MAX_NAME: usize = 255;

impl Server {
    /// In a volume there are none: they would not count, and have the owners of its files.
    fn allows(&self, name: &[u8]) -> bool {
        !self.is_volume() && is_allowed(name)
    }

    fn file_with_xattrs(&self, node: u64) -> Result<OwnedFd, Errno> {
        self.reopen(node, OFlags::RDONLY)
    }

    pub(super) fn xattr(&self, node: u64, name: &[u8], size: usize) -> Outcome {
        if !self.allows(name) {
            return Err(Errno::NODATA);
        }
        let file = self.file_with_xattrs(node)?;
        let mut value = vec![0; if size == 0 { MAX_DATA } else { size }];
        let count = fgetxattr(&file, name, &mut value[..])?;
        Ok(if size == 0 { Reply::xattr_size(count) } else { Reply::bytes(&value[..count]) })
    }

    pub(super) fn set_xattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Outcome {
        if !self.allows(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        fsetxattr(self.file_with_xattrs(node)?, name, value, flags)?;
        Ok(Reply::empty())
    }

    pub(super) fn xattrs(&self, node: u64, size: usize) -> Outcome {
        let file = self.file_with_xattrs(node)?;
        let mut names = vec![0; MAX_DATA];
        let count = flistxattr(&file, &mut names[..])?;
        let names: Vec<u8> = names[..count]
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| !self.is_volume() && name.starts_with(NAMESPACE))
            .flatten()
            .copied()
            .collect();
        match size {
            0 => Ok(Reply::xattr_size(names.len())),
            _ if names.len() > size => Err(Errno::RANGE),
            _ => Ok(Reply::bytes(&names)),
        }
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &[u8]) -> Outcome {
        if !self.allows(name) {
            return Err(Errno::OPNOTSUPP);
        }
        fremovexattr(self.file_with_xattrs(node)?, name)?;
        Ok(Reply::empty())
    }
}

fn is_allowed(name: &[u8]) -> bool {
    name.strip_prefix(NAMESPACE).is_some_and(|rest| !rest.is_empty()) && name.len() <= MAX_NAME
}
