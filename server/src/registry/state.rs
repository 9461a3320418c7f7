//! The sandboxes that a server knows, and their records on disk. The methods here keep the two the same; `create`, `lifecycle`
//! and their siblings decide what happens to a sandbox.

use super::{builds::known::Builds, entry::Entry, error::RegistryError, network::egress::Egress, record::Record};
use crate::{
    access::{keys::KeyId, tokens::random},
    config::{
        Config, TemplateConfigError,
        network::{NetworkConfigError, ServerNetwork},
    },
    metering::{ends::Ends, traffic::AllTraffic},
    quotas::{StorageLimits, count::Quota, starts::Starts, trails::Trails},
    store::{Outgoing, Store, StoreError},
    templates::{self, Template, snapshot_index::SnapshotIndex},
    volumes::VolumeIndex,
};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{FindError, Manager, Sandbox, SandboxId, SandboxName, SnapshotError, SupervisorProgram};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::Notify;

/// What the server is about to make. When a server is killed meanwhile, the next one removes any partial state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Intent {
    /// A sandbox of this name.
    Make { name: SandboxName },
    /// Copies of a sandbox, made after this moment (Unix time in milliseconds).
    Fork { of: SandboxId, since: u64 },
    /// Another network of a sandbox.
    SetNetwork { of: SandboxId, egress: Box<Egress>, internet: Option<bool> },
}

/// All sandboxes of a server. See the module.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) manager: Manager,
    pub(crate) bundle: Bundle,
    /// What keeps the networks of sandboxes.
    pub(super) supervisor: SupervisorProgram,
    /// What sandboxes may reach.
    pub(crate) network: ServerNetwork,
    pub(crate) templates: BTreeMap<String, Template>,
    pub(super) records: Store<Record>,
    pub(super) snapshots: SnapshotIndex,
    pub(crate) builds: Builds,
    pub(super) intents: Store<Intent>,
    entries: RwLock<HashMap<SandboxId, Arc<Entry>>>,
    /// Notified when the end of a sandbox's time changes.
    pub(super) time_changed: Notify,
    pub(super) starts: Starts,
    pub(super) quota: Quota,
    pub(super) snapshot_quota: Quota,
    /// Machines that ended oddly.
    pub(crate) ends: Ends,
    /// What passed the networks of all sandboxes.
    pub(crate) traffic: AllTraffic,
    pub(super) sandboxes_per_key: u32,
    pub(super) storage: StorageLimits,
    pub(super) trails: Trails,
    pub(crate) volumes: VolumeIndex,
}

/// Why a registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Template(#[from] TemplateConfigError),
    #[error(transparent)]
    Network(#[from] NetworkConfigError),
}

impl Registry {
    /// The registry in the manager's home, as its last server left it: call [`Self::recover`] next.
    pub(crate) fn open(
        config: &Config,
        manager: Manager,
        bundle: Bundle,
        supervisor: SupervisorProgram,
    ) -> Result<Self, OpenError> {
        let directory = manager.root().join("server");
        let network = config.network.network()?;
        let manager = manager.with_network(network.operator());
        let of_builds = config.images.network()?;
        network.permits.check(&of_builds).map_err(NetworkConfigError::Builds)?;
        Ok(Self {
            records: Store::open(directory.join("sandboxes"))?,
            snapshots: SnapshotIndex::open(directory.join("snapshots"))?,
            builds: Builds::open(&directory, &config.images, of_builds)?,
            intents: Store::open(directory.join("intents"))?,
            templates: templates::configured(config, &network, &manager, &bundle)?,
            entries: RwLock::default(),
            time_changed: Notify::new(),
            starts: Starts::new(config.concurrent_starts),
            quota: Quota::default(),
            snapshot_quota: Quota::default(),
            ends: Ends::default(),
            traffic: AllTraffic::default(),
            sandboxes_per_key: config.sandboxes_per_key,
            storage: StorageLimits { snapshots: config.snapshots_per_key, mib: config.storage_per_key },
            volumes: VolumeIndex::open(directory.join("volume-records"), config.volume_limits())?,
            trails: Trails::open(directory.join("gone"), config.audit_per_key, config.audit_days)?,
            manager: manager.with_max_audit_log(config.audit_per_sandbox.saturating_mul(1 << 20)),
            bundle,
            supervisor,
            network,
        })
    }

    /// A key's sandbox, whatever its phase.
    pub(crate) fn find(&self, owner: &KeyId, id: &str) -> Result<Arc<Entry>, RegistryError> {
        let unknown = || RegistryError::Unknown(id.to_owned());
        let id = SandboxId::try_from(id.to_owned()).map_err(|_| unknown())?;
        self.entry(&id).filter(|entry| entry.record().owner == *owner).ok_or_else(unknown)
    }

    /// All sandboxes of a key, newest first.
    pub(crate) fn list(&self, owner: &KeyId) -> Vec<Arc<Entry>> {
        let mut own: Vec<_> = self.entries().into_iter().filter(|entry| entry.record().owner == *owner).collect();
        own.sort_by_key(|entry| (std::cmp::Reverse(entry.record().started_at), entry.id.clone()));
        own
    }

    /// Every sandbox.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn entry(&self, id: &SandboxId) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub(super) fn add(&self, record: Record) -> Arc<Entry> {
        let entry = Entry::new(record);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(entry.id.clone(), Arc::clone(&entry));
        drop(entries);
        self.time_changed.notify_one();
        entry
    }

    #[cfg(test)]
    pub(crate) fn add_for_test(&self, record: Record) {
        self.add(record);
    }

    /// Writes it down, then lets it count. Under the entry's `change` lock, while it is not gone. What rests on disk outlives
    /// a loss of power, and so must the record that says so; what runs does not.
    pub(super) fn update(&self, entry: &Entry, record: Record) -> Result<(), RegistryError> {
        let outgoing = self.outgoing(&entry.record());
        if record.is_paused() || entry.record().is_paused() {
            self.records.put_durably(entry.id.as_str(), &record)?;
        } else {
            self.records.put(entry.id.as_str(), &record)?;
        }
        if let Some(outgoing) = outgoing {
            outgoing.wipe();
        }
        entry.set_record(record);
        self.time_changed.notify_one();
        Ok(())
    }

    /// Forgets a sandbox that is not there any more, and removes what is left of it. Under the entry's `change` lock.
    pub(super) fn lose(&self, entry: &Entry) -> Result<(), RegistryError> {
        entry.set_gone();
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&entry.id);
        self.remove_snapshot_of_manager(&paused_name(entry)?)?;
        let record = entry.record();
        self.trails.outlives(&entry.id, &record.owner)?;
        let outgoing = self.outgoing(&record);
        if record.is_paused() {
            self.records.remove_durably(entry.id.as_str())?;
        } else {
            self.records.remove(entry.id.as_str())?;
        }
        if let Some(outgoing) = outgoing {
            outgoing.wipe();
        }
        Ok(())
    }

    fn outgoing(&self, record: &Record) -> Option<Outgoing> {
        record.egress.has_secrets().then(|| self.records.outgoing(record.id.as_str()))
    }

    pub(super) fn sandbox(&self, entry: &Entry) -> Result<Sandbox, RegistryError> {
        self.manager.find(entry.id.as_str()).map_err(|error| match error {
            FindError::Unknown(_) => RegistryError::Unknown(entry.id.to_string()),
            error => error.into(),
        })
    }

    /// Whether or not it is there.
    pub(super) fn remove_snapshot_of_manager(&self, name: &SandboxName) -> Result<(), RegistryError> {
        match self.manager.remove_snapshot(name.as_str()) {
            Ok(()) | Err(SnapshotError::Unknown(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The snapshot that holds a paused sandbox.
pub(super) fn paused_name(entry: &Entry) -> Result<SandboxName, RegistryError> {
    SandboxName::try_from(format!("paused-{}", entry.id))
        .map_err(|error| RegistryError::Entropy(io::Error::other(error)))
}

/// A name that no other sandbox or snapshot has.
pub(super) fn new_name(prefix: &str) -> Result<SandboxName, RegistryError> {
    let random = random::<8>().map_err(RegistryError::Entropy)?;
    SandboxName::try_from(format!("{prefix}-{}", hex::encode(random)))
        .map_err(|error| RegistryError::Entropy(io::Error::other(error)))
}
