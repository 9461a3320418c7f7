//! The content of files.

use super::{Outcome, Owner, Server};
use crate::{
    handles::{Handle, Opened},
    protocol::{Entry, Name, Reply},
    root::{self, Identity, guest_flags},
};
use rustix::{
    fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fdatasync, fsync, ftruncate, seek},
    io::{Errno, pread, pwrite},
};
use std::{
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
};

impl Server {
    pub(super) fn open(&self, node: u64, flags: u32) -> Outcome {
        self.handles().has_room()?;
        let file = self.reopen(node, guest_flags(flags))?;
        if root::kind(&root::examine(&file)?) != libc::S_IFREG {
            return Err(Errno::ISDIR);
        }
        self.uses(&file)?;
        // Only now that it is the right file.
        if OFlags::from_bits_retain(flags).contains(OFlags::TRUNC) {
            self.resizing(&file, |_| 0, || ftruncate(&file, 0))?;
        }
        let opened = Opened { node, flags: guest_flags(flags).bits() };
        let handle = self.handles().add(Handle::File(Arc::new(file)), opened)?;
        Ok(Reply::empty().opened(handle))
    }

    pub(super) fn create(&self, parent: u64, name: Name<'_>, flags: u32, mode: u32, maker: Owner) -> Outcome {
        self.handles().has_room()?;
        let directory = self.directory(parent)?;
        let wanted = OFlags::from_bits_retain(flags);
        let open = guest_flags(flags) | wanted.intersection(OFlags::EXCL);
        let file = self.open_or_make(&directory, name, open, (mode, maker))?;
        self.uses(&file)?;
        if wanted.contains(OFlags::TRUNC) {
            self.resizing(&file, |_| 0, || ftruncate(&file, 0))?;
        }
        let stat = root::examine(&file)?;
        let found = root::find(&directory, name)?;
        root::expect(&found, root::Identity::from(&stat))?;
        let node = self.nodes().found(parent, name, found, &stat)?;
        let opened = Opened { node, flags: guest_flags(flags).bits() };
        let handle = match self.handles().add(Handle::File(Arc::new(file)), opened) {
            Ok(handle) => handle,
            Err(error) => {
                self.nodes().forget(node, 1);
                return Err(error);
            }
        };
        let attributes =
            self.shown(&stat, || root::open(&directory, name.bytes(), OFlags::RDONLY, Identity::from(&stat)));
        Ok(Reply::entry(&Entry { node, attributes }).opened(handle))
    }

    /// Makes a regular file, or opens the one that is there unless it must be new.
    fn open_or_make(
        &self,
        directory: &OwnedFd,
        name: Name<'_>,
        open: OFlags,
        (mode, maker): (u32, Owner),
    ) -> Result<OwnedFd, Errno> {
        let host_mode = self.host_mode(mode, false);
        if !self.is_volume() {
            return root::create(directory, name, open, host_mode);
        }
        // What is new counts, so it has to be known whether it is.
        match self.adding(|| root::create(directory, name, open | OFlags::EXCL, host_mode)) {
            Err(Errno::EXIST) if !open.contains(OFlags::EXCL) => {
                let stat = root::describe(directory, name)?;
                root::open(directory, name.bytes(), open, Identity::from(&stat))
            }
            made => {
                let file = made?;
                self.give(&file, maker, mode)?;
                Ok(file)
            }
        }
    }

    pub(super) fn read(&self, handle: u64, offset: u64, size: usize) -> Outcome {
        let file = self.handles().file(handle)?;
        Reply::filled(size, |buffer| {
            let mut filled = 0;
            while filled < buffer.len() {
                match pread(&file, &mut buffer[filled..], offset.saturating_add(filled as u64)) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(Errno::INTR) => {}
                    // What was read counts; the next read fails.
                    Err(_) if filled > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(filled)
        })
    }

    pub(super) fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Outcome {
        let file = self.handles().file(handle)?;
        let mut written = 0;
        self.writing(&file, offset, data.len(), || {
            while written < data.len() {
                match pwrite(&file, &data[written..], offset.saturating_add(written as u64)) {
                    Ok(0) => break,
                    Ok(count) => written += count,
                    Err(Errno::INTR) => {}
                    Err(_) if written > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        })?;
        Ok(Reply::written(written))
    }

    pub(super) fn sync(&self, handle: u64, only_data: bool) -> Outcome {
        match self.handles().get(handle)? {
            Handle::File(file) if only_data => fdatasync(&file)?,
            Handle::File(file) => fsync(&file)?,
            Handle::Directory(directory) => fsync(&*directory.lock().unwrap_or_else(PoisonError::into_inner))?,
        }
        Ok(Reply::empty())
    }

    pub(super) fn allocate(&self, handle: u64, offset: u64, length: u64, mode: u32) -> Outcome {
        let mode = FallocateFlags::from_bits_retain(mode);
        let allowed = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !allowed.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.handles().file(handle)?;
        let end = offset.saturating_add(length);
        if self.is_volume() && mode.contains(FallocateFlags::KEEP_SIZE) && !mode.contains(FallocateFlags::PUNCH_HOLE) {
            // Space behind the end of a file would not count.
            return Err(Errno::OPNOTSUPP);
        }
        self.resizing(&file, |size| size.max(end), || fallocate(&file, mode, offset, length))?;
        Ok(Reply::empty())
    }

    pub(super) fn seek(&self, handle: u64, offset: u64, whence: u32) -> Outcome {
        let file = self.handles().file(handle)?;
        let to = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        // No operation uses the position of the file.
        Ok(Reply::offset(seek(&file, to)?))
    }
}
