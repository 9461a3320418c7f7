//! Snapshots on disk. A snapshot is a directory with everything that a machine is restored from; it
//! needs no other directory.
//!
//! ```text
//! manifest.json  what it is of, its files in order, and where it can be restored (`manifest`)
//! state          vCPUs, devices, memory map (the VMM's, docs/snapshot-format.md)
//! memory.<n>     guest memory, sparse; those before the last may be shared with earlier snapshots
//!                (hard links)
//! disk.<n>       frozen disk layers above `template`, oldest first, likewise shared
//! template       the empty file system below them
//! image, agent   the read-only disks, where they could be linked
//! ```
//! Named snapshots are in `snapshots/<name>`, those that new sandboxes start from in `ready/<key>`.
//! Each was written in `staging/`, synced and renamed, so a snapshot that others can see is
//! complete. Only [`taking`] may make snapshots; [`crate::create::ready_snapshot`] decides which
//! ready snapshots exist.

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
