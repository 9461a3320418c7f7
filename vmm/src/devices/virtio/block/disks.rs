//! The writable disks of one machine together, and what happens to their layers when the machine is
//! snapshotted, forked or reset. Layers are frozen and stacked; only when there are many of them are
//! they merged, beside the running machine.

use super::{LayeredDiskError, PreparedLayers, SharedLayeredDisk, disk::lock};
use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    memory,
    memory::GuestMemory,
    process::{
        failure::kind_of,
        writer::{WriteFailure, WriterError, WriterProcess},
    },
};
use sandboxvm_protocol::vmm::{FdIndex, RefusalKind};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    sync::Arc,
};

/// Why the layers of disks cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// A disk refuses the layers.
    #[error(transparent)]
    Layers(#[from] LayeredDiskError),
    /// No process to merge them.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// Too many or too few files.
    #[error("{given} sets of disk files were given for {disks} writable disks")]
    Count {
        /// How many were given.
        given: usize,
        /// How many there are.
        disks: usize,
    },
    /// A descriptor cannot be copied.
    #[error("cannot copy a disk's descriptor: {0}")]
    Duplicate(io::Error),
}

impl DisksError {
    /// Returns the kind of refusal that a client receives.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Fd(_) | Self::Count { .. } => RefusalKind::BadRequest,
            Self::Layers(error) => error.kind(),
            Self::Writer(error) => error.kind(),
            Self::Duplicate(source) => kind_of(source),
        }
    }
}

/// A disk that the guest can write: clones are the same disk.
#[derive(Debug, Clone)]
pub struct WritableDisk {
    /// Raw image at the bottom.
    pub(super) template: Arc<File>,
    pub(super) layers: SharedLayeredDisk,
}

/// Other layers for all writable disks of a machine, in device order.
#[derive(Debug)]
pub struct PreparedDisks(Vec<PreparedLayers>);

/// All writable disks of one machine, in device order.
#[derive(Debug)]
pub struct WritableDisks(Vec<WritableDisk>);

impl WritableDisks {
    /// Takes the disks of a machine, in device order.
    #[must_use]
    pub fn new(disks: Vec<WritableDisk>) -> Self {
        Self(disks)
    }

    fn check_count(&self, given: usize) -> Result<(), DisksError> {
        let disks = self.0.len();
        if given == disks { Ok(()) } else { Err(DisksError::Count { given, disks }) }
    }

    /// Freezes the top layer of every disk and continues in `tops`.
    ///
    /// # Errors
    /// When one cannot; the ones before it have their new top already, which changes nothing that a guest sees.
    pub fn push_tops(&self, tops: Vec<File>) -> Result<(), DisksError> {
        self.check_count(tops.len())?;
        for (disk, top) in self.0.iter().zip(tops) {
            lock(&disk.layers).freeze_and_push(top)?;
        }
        Ok(())
    }

    /// Begins to merge the frozen layers of every disk into `files`, beside the machine.
    ///
    /// # Errors
    /// When there is a file too few or too many, or no process for it.
    pub fn merge(&self, files: Vec<File>, memory: &GuestMemory) -> Result<Merging, DisksError> {
        self.check_count(files.len())?;
        let kept = files.iter().map(File::try_clone).collect::<io::Result<Vec<_>>>().map_err(DisksError::Duplicate)?;
        let generations = self.0.iter().map(|disk| lock(&disk.layers).generation());
        let merged = MergedLayers(kept.into_iter().zip(generations).collect());
        let keep = self.descriptors().chain(files.iter().map(AsRawFd::as_raw_fd)).collect();
        let writer = WriterProcess::start(keep, || {
            // The guest's memory is of no use here, and what it rewrites meanwhile would exist twice.
            memory::forget_writes(memory)
                .map_err(|error| WriteFailure::host(&error, "cannot release the guest's memory"))?;
            let mut disks = self.0.iter().zip(files);
            disks.try_for_each(|(disk, file)| lock(&disk.layers).merge_frozen(file).map_err(WriteFailure::from))
        })?;
        Ok(Merging { writer, merged })
    }

    /// Puts what was merged in the place of what it was merged from. A guest sees no difference.
    ///
    /// # Errors
    /// When a disk has other layers by now; the ones before it have the merged one already.
    pub fn use_merged(&self, merged: MergedLayers) -> Result<(), DisksError> {
        for (disk, (file, generation)) in self.0.iter().zip(merged.0) {
            lock(&disk.layers).replace_frozen(file, generation)?;
        }
        Ok(())
    }

    /// All their descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().flat_map(|WritableDisk { template, layers }| {
            let layers = lock(layers);
            std::iter::once(&**template).chain(layers.layers()).map(AsRawFd::as_raw_fd).collect::<Vec<_>>()
        })
    }

    /// Makes all that is written durable, frozen layers included.
    ///
    /// # Errors
    /// When the host cannot.
    pub fn sync(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|disk| lock(&disk.layers).layers().try_for_each(File::sync_data))
    }

    /// Opens other layers for every disk, whose last one is empty and gets its header. Nothing changes for the guest.
    ///
    /// # Errors
    /// When one cannot be had, as on a full disk.
    pub fn prepare_switch(&self, given: &[&[FdIndex]], fds: &mut ReceivedFds) -> Result<PreparedDisks, DisksError> {
        self.check_count(given.len())?;
        let prepared = self.0.iter().zip(given).map(|(disk, layers)| {
            let files = fds.take_files(layers, "a disk layer")?;
            Ok(lock(&disk.layers).prepare_layers(files)?)
        });
        Ok(PreparedDisks(prepared.collect::<Result<_, DisksError>>()?))
    }

    /// Puts every disk onto the layers that were prepared for it.
    pub fn switch(&self, prepared: PreparedDisks) {
        for (disk, prepared) in self.0.iter().zip(prepared.0) {
            lock(&disk.layers).switch_to(prepared);
        }
    }
}

/// Layers being merged.
#[derive(Debug)]
pub struct Merging {
    writer: WriterProcess<()>,
    merged: MergedLayers,
}

/// Layers that were merged, one file per writable disk, each with the generation of the disk it was merged from.
#[derive(Debug)]
pub struct MergedLayers(Vec<(File, u64)>);

impl Merging {
    /// Readable when [`Merging::advance`] has something to do.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.writer.fd()
    }

    /// `Some` once the writer is done.
    pub fn advance(&mut self) -> Option<Result<MergedLayers, WriteFailure>> {
        let report = self.writer.advance()?;
        Some(report.map(|()| MergedLayers(std::mem::take(&mut self.merged.0))))
    }
}
