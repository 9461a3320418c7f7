//! The status file: one JSON object that says where the machine is, and in the end why it ended. The file is handed in
//! open; the VMM never knows its name.

use crate::confine;
use sandboxvm_protocol::vmm::{STATUS_LEN, VmStatus};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

/// See the module.
#[derive(Debug)]
pub struct StatusFile(File);

impl StatusFile {
    /// Writes to `file` from now on.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self(file)
    }

    /// Replaces the file's content.
    ///
    /// # Errors
    /// When the write fails, as on a full disk.
    pub fn write(&self, status: &VmStatus) -> io::Result<()> {
        let mut text = serde_json::to_vec(status)?;
        if text.len() >= STATUS_LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "status text is too long"));
        }
        text.resize(STATUS_LEN - 1, b' ');
        text.push(b'\n');
        confine::unless_refused(|| self.0.write_all_at(&text, 0)).unwrap_or(Ok(()))
    }
}

impl AsFd for StatusFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
