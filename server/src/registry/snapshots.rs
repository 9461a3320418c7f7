//! Snapshots that clients made, under IDs of this server's; what clients call them is theirs alone.

use super::{
    Registry,
    entry::Entry,
    error::RegistryError,
    new_name,
    record::{FORMAT, unix_millis},
    templates::SnapshotRecord,
};
use crate::access::keys::{Key, KeyId};
use sandboxvm_manager::SnapshotError;
use sandboxvm_protocol::identity::SandboxName;
use std::time::SystemTime;

impl Registry {
    /// A snapshot of a running sandbox, which goes on.
    #[tracing::instrument(skip_all)]
    pub(crate) async fn snapshot(&self, entry: &Entry, name: Option<String>) -> Result<SnapshotRecord, RegistryError> {
        let _change = entry.change.lock().await;
        let record = entry.record();
        if record.is_paused() {
            return Err(RegistryError::Paused(entry.id.to_string()));
        }
        let id = new_name("snap")?;
        self.sandbox(entry)?.snapshot(id.clone()).await?;
        let made = SnapshotRecord {
            format: FORMAT,
            id: id.clone(),
            owner: record.owner,
            sandbox: entry.id.clone(),
            names: name.into_iter().collect(),
            template: record.template,
            created_at: unix_millis(SystemTime::now()),
            user: record.user,
        };
        if let Err(error) = self.snapshots.put(id.as_str(), &made) {
            self.remove_snapshot_of_manager(&id)?;
            return Err(error.into());
        }
        Ok(made)
    }

    /// A key's snapshots, newest first.
    pub(crate) fn snapshots(&self, owner: &KeyId) -> Result<Vec<SnapshotRecord>, RegistryError> {
        let mut own: Vec<_> = self.snapshots.all()?.into_iter().filter(|snapshot| snapshot.owner == *owner).collect();
        own.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.created_at));
        Ok(own)
    }

    /// Removes a key's snapshot, by ID or name; false when there is none. What was made from it keeps what it needs.
    pub(crate) fn remove_snapshot(&self, key: &Key, asked: &str) -> Result<bool, RegistryError> {
        let found = self.snapshots(&key.id)?.into_iter().find(|own| own.is_called(asked));
        let Some(snapshot) = found else { return Ok(false) };
        self.remove_snapshot_of_manager(&snapshot.id)?;
        self.snapshots.remove(snapshot.id.as_str())?;
        Ok(true)
    }

    /// Whether or not it is there.
    pub(super) fn remove_snapshot_of_manager(&self, name: &SandboxName) -> Result<(), RegistryError> {
        match self.manager.remove_snapshot(name.as_str()) {
            Ok(()) | Err(SnapshotError::Unknown(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
