//! Disks as the list of devices has them: their files, the pace that they share, and their copies.

use super::{BlockDevice, DiskPace, TYPE, WritableDisk, disk::lock};
use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    devices::{
        kind::{BuildError, BuiltDevice, DeviceKind, HostSide, Limit, SystemCalls, UnbuiltDevice},
        virtio::{device::DeviceType, resume},
    },
    memory::released::ReleasedPages,
};
use sandboxvm_protocol::vmm::{ChildDevice, DeviceConfig, DiskConfig, FdIndex, MAX_DISKS};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
};

/// Disks.
#[derive(Debug)]
pub struct BlockKind;

impl DeviceKind for BlockKind {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn limit(&self) -> usize {
        MAX_DISKS
    }

    /// Files are read and written with the calls that snapshots are written with.
    fn system_calls(&self) -> SystemCalls {
        resume::SYSTEM_CALLS
    }

    fn take(
        &self,
        configs: &[DeviceConfig],
        fds: &mut ReceivedFds,
    ) -> Result<Vec<Box<dyn UnbuiltDevice>>, DescriptorError> {
        let pace = DiskPace::default();
        let mut disks: Vec<Box<dyn UnbuiltDevice>> = Vec::new();
        for config in configs {
            if let DeviceConfig::Block(config) = config {
                disks.push(Box::new(UnbuiltDisk { files: DiskFiles::take(config, fds)?, pace: pace.clone() }));
            }
        }
        Ok(disks)
    }
}

/// A disk that is not built yet.
#[derive(Debug)]
struct UnbuiltDisk {
    files: DiskFiles,
    /// Of all disks of the machine.
    pace: DiskPace,
}

#[derive(Debug)]
enum DiskFiles {
    /// A raw image.
    ReadOnly(Arc<File>),
    /// A file that is shorter than its disk.
    Slot(Arc<File>),
    /// A file whose content outlives the machine.
    Volume { file: Arc<File>, read_only: bool },
    /// Layers over a template, oldest first.
    Writable { template: Arc<File>, layers: Vec<File> },
}

impl DiskFiles {
    fn take(config: &DiskConfig, fds: &mut ReceivedFds) -> Result<Self, DescriptorError> {
        Ok(match config {
            DiskConfig::ReadOnly { image } => {
                Self::ReadOnly(Arc::new(File::from(fds.take(*image, "a read-only disk")?)))
            }
            DiskConfig::Volume { file, read_only } => {
                Self::Volume { file: Arc::new(File::from(fds.take(*file, "a volume")?)), read_only: *read_only }
            }
            DiskConfig::Slot { file } => Self::Slot(Arc::new(File::from(fds.take(*file, "a slot")?))),
            DiskConfig::Writable { template, layers } => Self::Writable {
                template: Arc::new(File::from(fds.take(*template, "a disk template")?)),
                layers: fds.take_files(layers, "a disk layer")?,
            },
        })
    }
}

impl UnbuiltDevice for UnbuiltDisk {
    fn descriptors(&self) -> Vec<RawFd> {
        match &self.files {
            DiskFiles::ReadOnly(file) | DiskFiles::Slot(file) | DiskFiles::Volume { file, .. } => {
                vec![file.as_raw_fd()]
            }
            DiskFiles::Writable { template, layers } => {
                std::iter::once(template.as_raw_fd()).chain(layers.iter().map(AsRawFd::as_raw_fd)).collect()
            }
        }
    }

    fn largest_file(&self) -> io::Result<u64> {
        match &self.files {
            DiskFiles::ReadOnly(_) | DiskFiles::Slot(_) | DiskFiles::Volume { read_only: true, .. } => Ok(0),
            DiskFiles::Volume { file, .. } => file.metadata().map(|metadata| metadata.len()),
            DiskFiles::Writable { template, .. } => template.metadata().map(|metadata| metadata.len()),
        }
    }

    fn build(self: Box<Self>, _released: &Arc<ReleasedPages>) -> Result<BuiltDevice, BuildError> {
        let Self { files, pace } = *self;
        let (device, disk) = match files {
            DiskFiles::ReadOnly(image) => (BlockDevice::read_only(duplicate(&image)?)?, HostDisk::ReadOnly(image)),
            DiskFiles::Slot(file) => (BlockDevice::slot(duplicate(&file)?)?, HostDisk::Slot(file)),
            DiskFiles::Volume { file, read_only } => {
                (BlockDevice::volume(duplicate(&file)?, read_only)?, HostDisk::Volume { file, read_only })
            }
            DiskFiles::Writable { template, layers } => {
                let (device, layers) = BlockDevice::writable_and_layers(duplicate(&template)?, layers)?;
                (device, HostDisk::Writable(WritableDisk { template, layers }))
            }
        };
        let host = DiskHost { disk, pace: pace.clone() };
        Ok(BuiltDevice { device: Box::new(device.at_pace(pace)), host: Box::new(host) })
    }
}

/// The host's side of a disk.
#[derive(Debug)]
struct DiskHost {
    disk: HostDisk,
    pace: DiskPace,
}

#[derive(Debug)]
enum HostDisk {
    ReadOnly(Arc<File>),
    Slot(Arc<File>),
    Volume { file: Arc<File>, read_only: bool },
    Writable(WritableDisk),
}

impl HostSide for DiskHost {
    fn writable_disk(&self) -> Option<&WritableDisk> {
        match &self.disk {
            HostDisk::ReadOnly(_) | HostDisk::Slot(_) | HostDisk::Volume { .. } => None,
            HostDisk::Writable(disk) => Some(disk),
        }
    }

    fn limit(&self, limit: Limit) {
        if let Limit::Disk(limits) = limit {
            self.pace.limit(limits);
        }
    }

    fn needs_file_in_copy(&self) -> bool {
        self.writable_disk().is_some()
    }

    fn file_in_copy(&self, given: &ChildDevice) -> Option<FdIndex> {
        match given {
            ChildDevice::Block { top } if self.needs_file_in_copy() => Some(*top),
            _ => None,
        }
    }

    /// The copy has the layers that are below the top of this disk, which the fork has just put there, and `file` above
    /// them.
    fn copy(&self, file: Option<OwnedFd>) -> Result<Box<dyn UnbuiltDevice>, BuildError> {
        let files = match &self.disk {
            HostDisk::ReadOnly(image) => DiskFiles::ReadOnly(Arc::clone(image)),
            HostDisk::Slot(file) => DiskFiles::Slot(Arc::clone(file)),
            // Two machines would write one file system.
            HostDisk::Volume { read_only: false, .. } => {
                let source = io::Error::from(io::ErrorKind::Unsupported);
                return Err(BuildError::Host { what: "a copy of a machine that can write a volume", source });
            }
            HostDisk::Volume { file, read_only } => DiskFiles::Volume { file: Arc::clone(file), read_only: *read_only },
            HostDisk::Writable(WritableDisk { template, layers }) => {
                let layers = lock(layers);
                let frozen = layers.layers().len().saturating_sub(1);
                let mut files = layers.layers().take(frozen).map(duplicate).collect::<Result<Vec<_>, _>>()?;
                files.extend(file.map(File::from));
                DiskFiles::Writable { template: Arc::clone(template), layers: files }
            }
        };
        Ok(Box::new(UnbuiltDisk { files, pace: self.pace.clone() }))
    }
}

fn duplicate(file: &File) -> Result<File, BuildError> {
    file.try_clone().map_err(|source| BuildError::Host { what: "a disk's descriptor", source })
}
