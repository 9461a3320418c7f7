//! The disk space of one key: how many snapshots, and how many bytes its snapshots and sandboxes take together.

use super::{Registry, entry::Entry, error::RegistryError, quota::Reserved, record::Phase};
use crate::access::keys::{Key, KeyId};
use std::io;

const MIB: u64 = 1 << 20;

/// What one key may take of the disk, unless it has its own numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct StorageLimits {
    pub(super) snapshots: u32,
    pub(super) mib: u64,
}

impl Registry {
    /// A place for one more snapshot of this key.
    pub(super) fn reserve_snapshot(&self, key: &Key) -> Result<Reserved<'_>, RegistryError> {
        let most = key.limits.snapshots.unwrap_or(self.storage.snapshots);
        let there = || self.snapshots.count(&key.id);
        self.snapshot_quota.reserve(&key.id, 1, most, there).map_err(RegistryError::SnapshotQuota)
    }

    /// Refuses what would write a sandbox's memory to the disk where its key may not have so much more there.
    pub(super) async fn check_storage(&self, key: &Key, entry: &Entry) -> Result<(), RegistryError> {
        let most_mib = key.limits.storage_mib.unwrap_or(self.storage.mib);
        let more = self.sandbox(entry)?.record().memory_bytes.bytes();
        let used = self.stored_by(&key.id).await?;
        if used.saturating_add(more) > most_mib.saturating_mul(MIB) {
            return Err(RegistryError::StorageQuota { used_mib: used / MIB, more_mib: more / MIB, most_mib });
        }
        Ok(())
    }

    /// Bytes that a key's sandboxes and snapshots take on the disk.
    pub(super) async fn stored_by(&self, owner: &KeyId) -> Result<u64, RegistryError> {
        let mut snapshots: Vec<_> = self.snapshots.of(owner).into_iter().map(|snapshot| snapshot.id).collect();
        let mut sandboxes = Vec::new();
        for entry in self.list(owner) {
            sandboxes.push(entry.id.clone());
            if let Phase::Paused { snapshot } = entry.record().phase {
                snapshots.push(snapshot);
            }
        }
        let manager = self.manager.clone();
        // A file system that is slow to answer must not keep requests waiting.
        let counted = tokio::task::spawn_blocking(move || manager.disk_usage(&sandboxes, &snapshots)).await;
        counted.map_err(|error| RegistryError::Task(io::Error::other(error)))
    }
}
