//! What a guest may make this process keep. The numbers follow from the descriptors that the process
//! may have.

use rustix::process::{Resource, getrlimit};

/// Descriptors that the process asks for.
pub(crate) const DESCRIPTORS: u64 = 16_384;
/// Descriptors that it keeps for itself: streams, the root, and files that are open during a request.
const RESERVED: u64 = 64;
/// Maximum number of files and directories that the guest refers to. A node takes about 200 bytes and its name.
const NODES: usize = 1 << 19;

/// The limits of one share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Files and directories that the guest refers to.
    pub(crate) nodes: usize,
    /// Of these, those that are kept open. The others are opened again when they are used.
    pub(crate) open_nodes: usize,
    /// Files and directories that the guest has open.
    pub(crate) handles: usize,
}

impl Limits {
    /// Returns the limits for this process.
    pub(crate) fn of_process() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
        let half = usize::try_from(descriptors.saturating_sub(RESERVED) / 2).unwrap_or(0);
        Self { nodes: NODES, open_nodes: half, handles: half }
    }
}
