//! The files and directories that the guest has open, by numbers.

use rustix::io::Errno;
use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

/// An open file or directory.
#[derive(Debug, Clone)]
pub(crate) enum Handle {
    /// A file, which is read and written at stated offsets.
    File(Arc<OwnedFd>),
    /// A directory, whose position a reader sets first.
    Directory(Arc<Mutex<OwnedFd>>),
}

/// All handles of a share.
#[derive(Debug)]
pub(crate) struct Handles {
    handles: HashMap<u64, Handle>,
    next: u64,
    most: usize,
}

impl Handles {
    /// `first` is the number of the first handle, as for nodes.
    pub(crate) fn new(first: u64, most: usize) -> Self {
        Self { handles: HashMap::new(), next: first, most }
    }

    /// Returns an error if there is no room for another handle.
    pub(crate) fn has_room(&self) -> Result<(), Errno> {
        if self.handles.len() < self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    pub(crate) fn add(&mut self, handle: Handle) -> Result<u64, Errno> {
        self.has_room()?;
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.handles.insert(number, handle);
        Ok(number)
    }

    /// Returns a file. A handle of a process before this one is stale.
    pub(crate) fn file(&self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.handles.get(&number) {
            Some(Handle::File(file)) => Ok(Arc::clone(file)),
            Some(Handle::Directory(_)) => Err(Errno::ISDIR),
            None => Err(Errno::STALE),
        }
    }

    pub(crate) fn get(&self, number: u64) -> Result<Handle, Errno> {
        self.handles.get(&number).cloned().ok_or(Errno::STALE)
    }

    pub(crate) fn remove(&mut self, number: u64) {
        self.handles.remove(&number);
    }
}
