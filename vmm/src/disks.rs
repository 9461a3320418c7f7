//! The files behind a machine's disks, and what becomes of them when it is snapshotted, forked or reset. Disk layers
//! are frozen and stacked; only when there are many of them are they merged, beside the running machine.

use crate::{
    descriptors::{DescriptorError, ReceivedFds},
    devices::{
        board::lock,
        virtio::{
            block::{BlockDevice, BlockError, DiskPace, LayeredDiskError, PreparedLayers, SharedLayeredDisk},
            device::VirtioDevice,
        },
    },
    memory,
    memory::GuestMemory,
    process::writer::{WriterError, WriterProcess},
};
use sandboxvm_protocol::vmm::{DiskConfig, DiskLayers, FdIndex};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

/// Why disks cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// A disk cannot be opened.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Its layers.
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
    /// A descriptor cannot be copied, or a file not synced.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Other layers for all writable disks of a machine, in device order.
#[derive(Debug)]
pub struct PreparedDisks(Vec<PreparedLayers>);

#[derive(Debug)]
enum Disk {
    ReadOnly(File),
    Writable { template: File, layers: SharedLayeredDisk },
}

/// All disks of one machine.
#[derive(Debug)]
pub struct Disks {
    /// In device order.
    disks: Vec<Disk>,
    pace: DiskPace,
}

fn duplicate(file: &File) -> Result<File, DisksError> {
    file.try_clone().map_err(|source| DisksError::Io { what: "cannot copy a disk's descriptor", source })
}

impl Disks {
    fn writable(&self) -> impl Iterator<Item = (&File, &SharedLayeredDisk)> {
        self.disks.iter().filter_map(|disk| match disk {
            Disk::ReadOnly(_) => None,
            Disk::Writable { template, layers } => Some((template, layers)),
        })
    }

    fn check_count(&self, given: usize) -> Result<(), DisksError> {
        let disks = self.writable().count();
        if given == disks { Ok(()) } else { Err(DisksError::Count { given, disks }) }
    }

    /// Freezes the top layer of every disk and continues in `tops`.
    ///
    /// # Errors
    /// When one cannot; the ones before it have their new top already, which changes nothing that a guest sees.
    pub fn push_tops(&self, tops: Vec<File>) -> Result<(), DisksError> {
        self.check_count(tops.len())?;
        for ((_, layers), top) in self.writable().zip(tops) {
            lock(layers).freeze_and_push(top)?;
        }
        Ok(())
    }

    /// Begins to merge the frozen layers of every disk into `files`, beside the machine.
    ///
    /// # Errors
    /// When there is a file too few or too many, or no process for it.
    pub fn merge(&self, files: Vec<File>, memory: &GuestMemory) -> Result<Merging, DisksError> {
        self.check_count(files.len())?;
        let kept = files.iter().map(duplicate).collect::<Result<Vec<_>, _>>()?;
        let generations = self.writable().map(|(_, layers)| lock(layers).generation());
        let merged = MergedLayers(kept.into_iter().zip(generations).collect());
        let keep = self.descriptors().chain(files.iter().map(AsRawFd::as_raw_fd)).collect();
        let writer = WriterProcess::start(keep, || {
            // The guest's memory is of no use here, and what it rewrites meanwhile would exist twice.
            memory::forget_writes(memory).map_err(|error| format!("cannot let go of the guest's memory: {error}"))?;
            let mut disks = self.writable().zip(files);
            disks.try_for_each(|((_, layers), file)| lock(layers).merge_frozen(file).map_err(|error| error.to_string()))
        })?;
        Ok(Merging { writer, merged })
    }

    /// Puts what was merged in the place of what it was merged from. A guest sees no difference.
    ///
    /// # Errors
    /// When a disk has other layers by now; the ones before it have the merged one already.
    pub fn use_merged(&self, merged: MergedLayers) -> Result<(), DisksError> {
        for ((_, layers), (file, generation)) in self.writable().zip(merged.0) {
            lock(layers).replace_frozen(file, generation)?;
        }
        Ok(())
    }

    /// All their descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.writable().flat_map(|(template, layers)| {
            let layers = lock(layers);
            std::iter::once(template).chain(layers.layers()).map(AsRawFd::as_raw_fd).collect::<Vec<_>>()
        })
    }

    /// Makes all that is written durable, frozen layers included.
    ///
    /// # Errors
    /// When the host cannot.
    pub fn sync(&self) -> io::Result<()> {
        self.writable().try_for_each(|(_, layers)| lock(layers).layers().try_for_each(File::sync_data))
    }

    /// Opens other layers for every disk, whose last one is empty and gets its header. Nothing changes for the guest.
    ///
    /// # Errors
    /// When one cannot be had, as on a full disk.
    pub fn prepare_switch(&self, disks: &[DiskLayers], fds: &mut ReceivedFds) -> Result<PreparedDisks, DisksError> {
        self.check_count(disks.len())?;
        let prepared = self.writable().zip(disks).map(|((_, layers), DiskLayers(files))| {
            let files = take_files(files, fds)?;
            Ok(lock(layers).prepare_layers(files)?)
        });
        Ok(PreparedDisks(prepared.collect::<Result<_, DisksError>>()?))
    }

    /// Puts every disk onto the layers that were prepared for it.
    pub fn switch(&self, prepared: PreparedDisks) {
        for ((_, layers), prepared) in self.writable().zip(prepared.0) {
            lock(layers).switch_to(prepared);
        }
    }

    /// The files of a child's disks, as they are below this machine's tops (see [`Disks::push_tops`]), with `tops`
    /// above.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    pub fn fork(&self, tops: Vec<File>) -> Result<Vec<DiskFiles>, DisksError> {
        self.check_count(tops.len())?;
        let mut tops = tops.into_iter();
        self.disks
            .iter()
            .map(|disk| match disk {
                Disk::ReadOnly(image) => Ok(DiskFiles::ReadOnly(duplicate(image)?)),
                Disk::Writable { template, layers } => {
                    let layers = lock(layers);
                    let frozen = layers.layers().len().saturating_sub(1);
                    let mut files = layers.layers().take(frozen).map(duplicate).collect::<Result<Vec<_>, _>>()?;
                    files.extend(tops.next());
                    Ok(DiskFiles::Writable { template: duplicate(template)?, layers: files })
                }
            })
            .collect()
    }

    /// How fast they are served together.
    #[must_use]
    pub fn pace(&self) -> &DiskPace {
        &self.pace
    }

    /// Opens disks that are served at `pace`, and makes a device of each.
    ///
    /// # Errors
    /// When a file is not what it should be.
    pub fn open(files: Vec<DiskFiles>, pace: DiskPace) -> Result<(Self, Vec<Box<dyn VirtioDevice>>), DisksError> {
        let mut disks = Vec::with_capacity(files.len());
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::with_capacity(files.len() + 2);
        for disk in files {
            match disk {
                DiskFiles::ReadOnly(image) => {
                    disks.push(Disk::ReadOnly(duplicate(&image)?));
                    devices.push(Box::new(BlockDevice::read_only(image)?.at_pace(pace.clone())));
                }
                DiskFiles::Writable { template, layers } => {
                    let kept = duplicate(&template)?;
                    let device = BlockDevice::writable(template, layers)?.at_pace(pace.clone());
                    if let Some(layers) = device.layered_disk() {
                        disks.push(Disk::Writable { template: kept, layers });
                    }
                    devices.push(Box::new(device));
                }
            }
        }
        Ok((Self { disks, pace }, devices))
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
    pub fn advance(&mut self) -> Option<Result<MergedLayers, String>> {
        let report = self.writer.advance()?;
        Some(report.map(|()| MergedLayers(std::mem::take(&mut self.merged.0))))
    }
}

/// The files of one disk.
#[derive(Debug)]
pub enum DiskFiles {
    /// A raw image.
    ReadOnly(File),
    /// Layers over a template, oldest first.
    Writable {
        /// Raw image at the bottom.
        template: File,
        /// Oldest first.
        layers: Vec<File>,
    },
}

impl DiskFiles {
    /// Takes the files that `config` names.
    ///
    /// # Errors
    /// When one did not come with the message.
    pub fn take(config: &DiskConfig, fds: &mut ReceivedFds) -> Result<Self, DescriptorError> {
        Ok(match config {
            DiskConfig::ReadOnly { image } => Self::ReadOnly(File::from(fds.take(*image, "a read-only disk")?)),
            DiskConfig::Writable { template, layers } => Self::Writable {
                template: File::from(fds.take(*template, "a disk template")?),
                layers: take_files(layers, fds)?,
            },
        })
    }

    /// All its descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let (first, layers): (&File, &[File]) = match self {
            Self::ReadOnly(image) => (image, &[]),
            Self::Writable { template, layers } => (template, layers),
        };
        std::iter::once(first).chain(layers).map(AsRawFd::as_raw_fd)
    }
}

/// Size in bytes of the largest disk that can be written.
///
/// # Errors
/// When a template's size cannot be had.
pub fn largest(disks: &[DiskFiles]) -> Result<u64, DisksError> {
    let size = |template: &File| template.metadata().map(|metadata| metadata.len());
    let sizes = disks.iter().filter_map(|disk| match disk {
        DiskFiles::ReadOnly(_) => None,
        DiskFiles::Writable { template, .. } => Some(size(template)),
    });
    let sizes = sizes.collect::<io::Result<Vec<_>>>();
    let sizes = sizes.map_err(|source| DisksError::Io { what: "cannot read the size of a disk's template", source })?;
    Ok(sizes.into_iter().max().unwrap_or(0))
}

/// Takes the files at `indices`.
///
/// # Errors
/// When one did not come with the message.
pub fn take_files(indices: &[FdIndex], fds: &mut ReceivedFds) -> Result<Vec<File>, DescriptorError> {
    indices.iter().map(|index| fds.take(*index, "a disk layer").map(File::from)).collect()
}
