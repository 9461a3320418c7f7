//! What a process forked off the VMM is writing, and what the event loop needs when it is done.

use crate::{
    devices::virtio::block::Merging,
    snapshot::{taking::Taking, tracking::WriteTracking},
};
use std::{ops::Range, os::fd::BorrowedFd};

/// What a writer is at.
#[derive(Debug)]
pub(super) enum Work {
    Snapshot(Box<BeingTaken>),
    Merge(Merging),
}

/// A snapshot being written, and what becomes of it.
#[derive(Debug)]
pub(super) struct BeingTaken {
    pub(super) taking: Taking,
    /// What is written since: it counts once the snapshot is whole.
    pub(super) tracking: Option<WriteTracking>,
    /// Pages given back before: none of the next snapshot's concern unless this one fails.
    pub(super) released: Vec<Range<u64>>,
}

impl Work {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Snapshot(snapshot) => snapshot.taking.fd(),
            Self::Merge(merging) => merging.fd(),
        }
    }
}
