//! Volumes of keys: which there are, and what keeps one from removal. Knows nothing of what is in them, and nothing of the
//! lives of sandboxes. They are directories (`sandboxvm_manager`'s shared volumes), not the disks of `sandboxvm volume`.

mod index;
mod mount;
mod name;

pub(crate) use index::{HeldVolumes, VolumeError, VolumeIndex, VolumeRecord};
pub(crate) use mount::{MountedVolume, WantedMount};

/// What one key may have, unless it has its own number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VolumeLimits {
    /// Maximum number of volumes.
    pub(crate) volumes: u32,
    /// Maximum size of each in MiB.
    pub(crate) mib: u64,
    /// Maximum number of files, directories and links in each.
    pub(crate) names: u64,
}
