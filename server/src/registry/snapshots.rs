//! Snapshots that clients made, under IDs of this server's; what clients call them is theirs alone.

use super::{
    entry::Entry,
    error::RegistryError,
    lifecycle::Back,
    state::{Registry, new_name},
};
use crate::{
    access::keys::{Key, KeyId},
    store::{FORMAT, unix_millis},
    templates::SnapshotRecord,
};
use sandboxvm_manager::{ExitStatus, Output, ProcessSpec, Sandbox};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// How long a guest may take to write to its disk what it has in memory.
const WRITTEN_WITHIN: Duration = Duration::from_secs(120);

/// Has the guest write to its disk what it holds in memory; false where it does not.
async fn write_back(sandbox: &Sandbox) -> bool {
    let Ok(sync) = ProcessSpec::builder(["sync"]).build() else { return false };
    let Ok(mut exec) = sandbox.exec(sync).await else { return false };
    loop {
        match exec.output.next().await {
            Ok(Some(Output::Exited(status))) => return status == ExitStatus::Code(0),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return false,
        }
    }
}

impl Registry {
    /// A snapshot of a running sandbox, which runs on.
    #[tracing::instrument(skip_all)]
    pub(crate) async fn snapshot(
        &self,
        key: &Key,
        entry: &Entry,
        name: Option<String>,
        back: Back,
    ) -> Result<SnapshotRecord, RegistryError> {
        let mut reserved = self.reserve_snapshot(key)?;
        let _change = self.alter(entry).await?;
        let sandbox = self.running(entry).await?;
        self.check_no_volumes(entry)?;
        self.check_storage(key, entry).await?;
        let record = entry.record();
        let id = new_name("snap")?;
        if back == Back::FromDisk {
            let written = timeout(WRITTEN_WITHIN, write_back(&sandbox)).await.unwrap_or(false);
            if !written {
                return self.or_gone(entry, Err(RegistryError::Unwritten(entry.id.to_string()))).await;
            }
        }
        let taken = sandbox.snapshot(id.clone()).await;
        self.or_gone(entry, taken.map_err(RegistryError::from)).await?;
        let made = SnapshotRecord {
            format: FORMAT,
            id: id.clone(),
            owner: record.owner,
            sandbox: entry.id.clone(),
            names: name.into_iter().collect(),
            template: record.template,
            origin: record.origin,
            created_at: unix_millis(SystemTime::now()),
            user: record.user,
            workdir: record.workdir,
            memory: back == Back::WithMemory,
        };
        if let Err(error) = reserved.becomes(|| self.snapshots.add(made.clone())) {
            self.remove_snapshot_of_manager(&id)?;
            return Err(error.into());
        }
        Ok(made)
    }

    /// A key's snapshots, newest first.
    pub(crate) fn snapshots(&self, owner: &KeyId) -> Vec<SnapshotRecord> {
        self.snapshots.of(owner)
    }

    /// Removes a key's snapshot, by ID or name; false when there is none. What was made from it keeps what it needs.
    pub(crate) fn remove_snapshot(&self, key: &Key, asked: &str) -> Result<bool, RegistryError> {
        let found = self.snapshots.of(&key.id).into_iter().find(|own| own.is_called(asked));
        let Some(snapshot) = found else { return Ok(false) };
        self.remove_snapshot_of_manager(&snapshot.id)?;
        self.snapshots.remove(&key.id, &snapshot.id)?;
        Ok(true)
    }
}
