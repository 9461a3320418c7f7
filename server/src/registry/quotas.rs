//! What one key may have, checked before anything is made for it: sandboxes, snapshots, disk space, audit logs.

use super::{builds::known::states_of, entry::Entry, error::RegistryError, record::Phase, state::Registry};
use crate::{
    access::keys::{Key, KeyId},
    quotas::count::Reserved,
};
use std::{io, time::Duration};

const MIB: u64 = 1 << 20;
/// Between two removals of old audit logs.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

impl Registry {
    /// As many sandboxes as this key may have.
    pub(super) fn sandboxes_of(&self, key: &Key) -> u32 {
        key.limits.sandboxes.unwrap_or(self.sandboxes_per_key)
    }

    /// A place for `more` sandboxes of this key.
    pub(super) fn reserve(&self, key: &Key, more: u32) -> Result<Reserved<'_>, RegistryError> {
        self.quota
            .reserve(&key.id, more, self.sandboxes_of(key), || self.list(&key.id).len())
            .map_err(RegistryError::Quota)
    }

    /// A place for one more snapshot of this key.
    pub(super) fn reserve_snapshot(&self, key: &Key) -> Result<Reserved<'_>, RegistryError> {
        let most = key.limits.snapshots.unwrap_or(self.storage.snapshots);
        let there = || self.snapshots.count(&key.id);
        self.snapshot_quota.reserve(&key.id, 1, most, there).map_err(RegistryError::SnapshotQuota)
    }

    /// Refuses what would write a sandbox's memory to the disk where its key may not have so much more there.
    pub(super) async fn check_storage(&self, key: &Key, entry: &Entry) -> Result<(), RegistryError> {
        self.check_storage_for(key, self.sandbox(entry)?.record().memory_bytes.bytes()).await
    }

    /// Refuses what would take so many bytes more where its key may not have them.
    pub(super) async fn check_storage_for(&self, key: &Key, more: u64) -> Result<(), RegistryError> {
        let most_mib = key.limits.storage_mib.unwrap_or(self.storage.mib);
        let used = self.stored_by(&key.id).await?;
        if used.saturating_add(more) > most_mib.saturating_mul(MIB) {
            return Err(RegistryError::StorageQuota { used_mib: used / MIB, more_mib: more / MIB, most_mib });
        }
        Ok(())
    }

    /// Bytes that a key's sandboxes, snapshots, builds, kept states of builds and uploads take on the disk.
    pub(super) async fn stored_by(&self, owner: &KeyId) -> Result<u64, RegistryError> {
        let mut snapshots: Vec<_> = self.snapshots.of(owner).into_iter().map(|snapshot| snapshot.id).collect();
        let mut sandboxes = Vec::new();
        for entry in self.list(owner) {
            sandboxes.push(entry.id.clone());
            if let Phase::Paused { snapshot } = entry.record().phase {
                snapshots.push(snapshot);
            }
        }
        snapshots.extend(self.builds.templates.snapshots(Some(owner)));
        let states = states_of(owner);
        let all = self.manager.snapshots()?.into_iter().filter_map(|manifest| manifest.name);
        snapshots.extend(all.filter(|name| name.as_str().starts_with(&states)));
        let uploads = self.builds.uploads.bytes_of(owner);
        let manager = self.manager.clone();
        // A file system that is slow to answer must not keep requests waiting.
        let counted = tokio::task::spawn_blocking(move || manager.disk_usage(&sandboxes, &snapshots)).await;
        counted.map(|bytes| bytes.saturating_add(uploads)).map_err(|error| RegistryError::Task(io::Error::other(error)))
    }

    /// Refuses a new sandbox to a key whose logs take all that they may.
    pub(super) async fn check_audit(&self, key: &Key) -> Result<(), RegistryError> {
        let most_mib = key.limits.audit_mib.unwrap_or(self.trails.mib_per_key());
        let live = || self.list(&key.id).iter().map(|entry| entry.id.clone()).collect();
        let used = self.trails.logged_by(&self.manager, &key.id, live).await.map_err(RegistryError::Task)?;
        if used >= most_mib.saturating_mul(MIB) {
            return Err(RegistryError::AuditQuota { used_mib: used / MIB, most_mib });
        }
        Ok(())
    }

    /// Removes old audit logs from time to time; never returns.
    pub(crate) async fn keep_trails(&self) {
        loop {
            // Some files for each sandbox of a month: off this thread while others have requests on it.
            match tokio::task::block_in_place(|| self.trails.prune(&self.manager)) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed old audit logs"),
                Err(error) => tracing::warn!(%error, "cannot remove old audit logs"),
            }
            self.trails.forget_old_counts();
            tokio::time::sleep(PRUNE_EVERY).await;
        }
    }
}
