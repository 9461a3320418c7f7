//! Shares of a server that one key may take: counters and measures that know nothing of sandboxes' lives. `registry` asks them
//! before it makes anything.

pub(crate) mod count;
pub(crate) mod starts;
pub(crate) mod trails;

/// Disk space that one key may take, unless the key has limits of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StorageLimits {
    /// Maximum number of snapshots.
    pub(crate) snapshots: u32,
    /// Maximum size of snapshots and sandboxes together, in MiB.
    pub(crate) mib: u64,
}
