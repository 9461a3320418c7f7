//! The files and directories that the guest has open, by numbers.

use crate::protocol::record::SavedHandle;
use rustix::io::Errno;
use std::{
    collections::BTreeMap,
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

/// What another process needs to open it again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) node: u64,
    /// Flags of open(2) without those that change the file.
    pub(crate) flags: u32,
}

/// All handles of a share.
#[derive(Debug)]
pub(crate) struct Handles {
    /// In the order of their numbers, in which they are saved.
    handles: BTreeMap<u64, (Handle, Opened)>,
    next: u64,
    most: usize,
}

impl Handles {
    /// `first` is the number of the first handle, as for nodes.
    pub(crate) fn new(first: u64, most: usize) -> Self {
        Self { handles: BTreeMap::new(), next: first, most }
    }

    /// Returns an error if there is no room for another handle.
    pub(crate) fn has_room(&self) -> Result<(), Errno> {
        if self.handles.len() < self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    pub(crate) fn add(&mut self, handle: Handle, opened: Opened) -> Result<u64, Errno> {
        self.has_room()?;
        let number = loop {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            // Numbers of another process, which were restored, may be anywhere.
            if !self.handles.contains_key(&number) {
                break number;
            }
        };
        self.handles.insert(number, (handle, opened));
        Ok(number)
    }

    /// Adds a handle of another process.
    pub(crate) fn restore(&mut self, number: u64, handle: Handle, opened: Opened) -> Result<(), Errno> {
        self.has_room()?;
        if self.handles.contains_key(&number) {
            return Err(Errno::INVAL);
        }
        self.handles.insert(number, (handle, opened));
        Ok(())
    }

    /// Returns the handles from a number on, in order.
    pub(crate) fn saved(&self, from: u64) -> impl Iterator<Item = SavedHandle> {
        self.handles.range(from..).map(|(number, (handle, opened))| SavedHandle {
            number: *number,
            node: opened.node,
            flags: opened.flags,
            is_directory: matches!(handle, Handle::Directory(_)),
        })
    }

    /// Returns a file. A handle of a process before this one is stale.
    pub(crate) fn file(&self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.handles.get(&number) {
            Some((Handle::File(file), _)) => Ok(Arc::clone(file)),
            Some((Handle::Directory(_), _)) => Err(Errno::ISDIR),
            None => Err(Errno::STALE),
        }
    }

    pub(crate) fn get(&self, number: u64) -> Result<Handle, Errno> {
        self.handles.get(&number).map(|(handle, _)| handle.clone()).ok_or(Errno::STALE)
    }

    pub(crate) fn remove(&mut self, number: u64) {
        self.handles.remove(&number);
    }
}
