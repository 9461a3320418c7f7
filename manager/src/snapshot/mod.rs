//! Snapshots on disk: a directory with everything a machine goes on from, and needing no other.
//!
//! ```text
//! manifest.json  what it is of, its files in order, and where it can go on (`manifest`)
//! state          vCPUs, devices, memory map (the VMM's, docs/snapshot-format.md)
//! memory.<n>     guest memory, sparse; those before the last may be shared with the snapshots before (hard links)
//! disk.<n>       frozen disk layers above `template`, oldest first, likewise shared
//! template       the empty file system below them
//! image, agent   the read-only disks, where they could be linked
//! ```
//! Named ones are `snapshots/<name>`, those that new sandboxes start from `ready/<key>`. Each was written in `staging/`,
//! synced and renamed, so one that can be seen is whole. Only [`taking`] makes them; [`crate::create::ready_snapshot`] decides which
//! ready ones there are.

pub(crate) mod change;
pub(crate) mod change_lock;
pub(crate) mod error;
pub(crate) mod flatten;
pub(crate) mod lineage;
pub(crate) mod manifest;
pub(crate) mod pagemap;
pub(crate) mod seal;
pub(crate) mod storage;
pub(crate) mod store;
pub(crate) mod taking;
