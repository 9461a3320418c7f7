//! The sandboxes of this server: the only place that makes, pauses, resumes, copies and ends them.
//!
//! ```text
//! create ──> intent on disk ──> manager ──> record on disk ──> entry ──> client is answered
//! expiry ──> kill, or pause: snapshot, record on disk, VMM ended          (life)
//! restart ─> records read, each held against what runs                    (recovery)
//! ```
//! The record on disk is what counts: whatever a kill -9 interrupts, the next start makes the world like the records.

pub(crate) mod ends;
pub(crate) mod entry;
pub(crate) mod error;
mod expiry;
mod gate;
pub(crate) mod ingress;
pub(crate) mod life;
mod quota;
pub(crate) mod record;
mod recovery;
pub(crate) mod samples;
mod snapshot_index;
mod snapshots;
mod starts;
mod storage;
mod store;
pub(crate) mod templates;
mod trails;

use crate::{
    access::{
        keys::{Key, KeyId},
        tokens::random,
    },
    config::{Config, TemplateConfigError},
};
use entry::{Entry, Reached};
use error::RegistryError;
use ingress::Ingress;
use quota::{Quota, Reserved};
use record::{FORMAT, OnTimeout, Phase, Record, TemplateId};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{FindError, Manager, PoolRequest, SandboxSpec, StartFrom, WantedLimits};
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use serde::{Deserialize, Serialize};
use snapshot_index::SnapshotIndex;
use starts::{StartPermit, Starts};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};
use storage::StorageLimits;
use store::Store;
pub(crate) use store::StoreError;
use templates::{Source, Template};
use tokio::sync::Notify;
use trails::Trails;

/// What a client wants a new sandbox to be.
#[derive(Debug, Clone)]
pub(crate) struct NewSandbox {
    pub(crate) template: String,
    pub(crate) timeout: Duration,
    pub(crate) on_timeout: OnTimeout,
    pub(crate) auto_resume: bool,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) env: Vec<String>,
    pub(crate) secure: bool,
    pub(crate) public_traffic: bool,
    pub(crate) ingress: Ingress,
    pub(crate) allow_internet_access: Option<bool>,
}

/// What is about to be; what there is of it is removed by the next start of a server that was killed meanwhile.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Intent {
    /// A sandbox of this name.
    Make { name: SandboxName },
    /// Copies of a sandbox, made after this moment (Unix time in milliseconds).
    Fork { of: SandboxId, since: u64 },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) manager: Manager,
    pub(crate) bundle: Bundle,
    pub(crate) templates: BTreeMap<String, Template>,
    records: Store<Record>,
    snapshots: SnapshotIndex,
    intents: Store<Intent>,
    entries: RwLock<HashMap<SandboxId, Arc<Entry>>>,
    /// Somebody's time is another than it was.
    time_changed: Notify,
    starts: Starts,
    quota: Quota,
    snapshot_quota: Quota,
    /// Machines that ended oddly.
    pub(crate) ends: ends::Ends,
    sandboxes_per_key: u32,
    storage: StorageLimits,
    trails: Trails,
}

/// Why a registry was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Template(#[from] TemplateConfigError),
}

impl Registry {
    /// The registry in the manager's home, as its last server left it: call [`Self::recover`] next.
    pub(crate) fn open(config: &Config, manager: Manager, bundle: Bundle) -> Result<Self, OpenError> {
        let directory = manager.root().join("server");
        Ok(Self {
            records: Store::open(directory.join("sandboxes"))?,
            snapshots: SnapshotIndex::open(directory.join("snapshots"))?,
            intents: Store::open(directory.join("intents"))?,
            templates: templates::configured(config, &manager, &bundle)?,
            entries: RwLock::default(),
            time_changed: Notify::new(),
            starts: Starts::new(config.concurrent_starts),
            quota: Quota::default(),
            snapshot_quota: Quota::default(),
            ends: ends::Ends::default(),
            sandboxes_per_key: config.sandboxes_per_key,
            storage: StorageLimits { snapshots: config.snapshots_per_key, mib: config.storage_per_key },
            trails: Trails::open(directory.join("gone"), config.audit_per_key, config.audit_days)?,
            manager: manager.with_max_audit_log(config.audit_per_sandbox.saturating_mul(1 << 20)),
            bundle,
        })
    }

    /// Makes a sandbox and answers when its agent listens and it knows who it is.
    #[tracing::instrument(skip_all)]
    pub(crate) async fn create(&self, key: &Key, wanted: NewSandbox) -> Result<Arc<Entry>, RegistryError> {
        let source = templates::find(&self.templates, self.snapshots.of(&key.id), key, &wanted.template)?;
        let mut reserved = self.reserve(key, 1)?;
        self.check_audit(key).await?;
        let permit = self.starts.begin(&key.id).await?;
        let name = new_name("e2b")?;
        self.intents.put(name.as_str(), &Intent::Make { name: name.clone() })?;
        let made = self.make(key, wanted, source, name.clone(), &mut reserved, permit).await;
        self.intents.remove(name.as_str())?;
        made
    }

    #[tracing::instrument(skip_all)]
    async fn make(
        &self,
        key: &Key,
        wanted: NewSandbox,
        source: Source<'_>,
        name: SandboxName,
        reserved: &mut Reserved<'_>,
        permit: StartPermit,
    ) -> Result<Arc<Entry>, RegistryError> {
        let request = PoolRequest { name: Some(name), env: wanted.env, ephemeral: false };
        let (mut started, template, origin, user) = match source {
            Source::Template(template) => {
                let name = templates::untagged(&wanted.template).to_owned();
                let started = template.start(&self.manager, &self.bundle, request).await?;
                (started, TemplateId(name.clone()), TemplateId(name), template.config.user.clone())
            }
            Source::Snapshot(snapshot) => {
                let PoolRequest { name, env, ephemeral } = request;
                let id = snapshot.id.clone();
                let start_from = match snapshot.memory {
                    true => StartFrom::Snapshot(id),
                    false => StartFrom::SnapshotDisk(id),
                };
                // Records of servers before have no origin; their template is one unless it is a snapshot.
                let origin = snapshot.origin.unwrap_or(snapshot.template);
                let limits = self.templates.get(&origin.0).map_or_else(WantedLimits::default, |own| own.spec.limits);
                let spec = SandboxSpec { name, env, ephemeral, start_from, limits, ..SandboxSpec::default() };
                let started = self.manager.start(&self.bundle, &spec).await?;
                (started, TemplateId(snapshot.id.as_str().to_owned()), origin, snapshot.user)
            }
        };
        // Only the guest is waited for: see `starts`.
        drop(permit);
        if let Err(error) = started.settled().await {
            // The cause is what the caller needs; what cannot be removed a sweep will name.
            let _ = started.finish().await;
            return Err(error.into());
        }
        let now = SystemTime::now();
        let record = Record {
            format: FORMAT,
            id: started.sandbox().id().clone(),
            owner: key.id.clone(),
            template,
            origin: Some(origin),
            started_at: now,
            end_at: now + wanted.timeout,
            on_timeout: wanted.on_timeout,
            auto_resume: wanted.auto_resume,
            metadata: wanted.metadata,
            secure: wanted.secure,
            token_generation: 0,
            public_traffic: wanted.public_traffic,
            ingress: wanted.ingress,
            allow_internet_access: wanted.allow_internet_access,
            user,
            phase: Phase::Running,
        };
        self.records.put(record.id.as_str(), &record)?;
        let _ = started.detach();
        Ok(reserved.becomes(|| self.add(record)))
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

    /// A sandbox that a request is for, running: a paused one is resumed first where its client asked for that, and a change
    /// that is under way is waited for. Whether the request may reach it is the caller's to check, before.
    pub(crate) async fn reach(&self, id: &SandboxId) -> Result<Reached, RegistryError> {
        let unknown = || RegistryError::Unknown(id.to_string());
        let entry = self.entry(id).ok_or_else(unknown)?;
        loop {
            let pass = entry.gate.pass().await;
            if entry.is_gone() {
                return Err(unknown());
            }
            if entry.record().is_paused() {
                // The resume closes the gate that this request has passed.
                drop(pass);
                self.wake(&entry).await?;
                continue;
            }
            match self.manager.find(id.as_str()) {
                Ok(sandbox) if sandbox.state()?.is_live() => return Ok(Reached::new(entry, sandbox, pass)),
                // Ended, removed, or between the two machines of a reset: that is told apart where no change is under way.
                Ok(_) | Err(FindError::Unknown(_)) => {
                    drop(pass);
                    let _change = self.alter(&entry).await?;
                    if !entry.record().is_paused() {
                        self.running(&entry).await?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The ID of what an alias means to a key, and whether all keys have it.
    pub(crate) fn alias(&self, key: &Key, alias: &str) -> Result<(String, bool), RegistryError> {
        match templates::find(&self.templates, self.snapshots.of(&key.id), key, alias)? {
            Source::Template(_) => Ok((templates::untagged(alias).to_owned(), true)),
            Source::Snapshot(snapshot) => Ok((snapshot.id.as_str().to_owned(), false)),
        }
    }

    fn reserve(&self, key: &Key, more: u32) -> Result<Reserved<'_>, RegistryError> {
        let most = key.limits.sandboxes.unwrap_or(self.sandboxes_per_key);
        self.quota.reserve(&key.id, more, most, || self.list(&key.id).len()).map_err(RegistryError::Quota)
    }

    fn add(&self, record: Record) -> Arc<Entry> {
        let entry = Entry::new(record);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(entry.id.clone(), Arc::clone(&entry));
        drop(entries);
        self.time_changed.notify_one();
        entry
    }

    /// Writes it down, then lets it count. Under the entry's `change` lock, while it is not gone. What rests on disk outlives
    /// a loss of power, and so must the record that says so; what runs does not.
    fn update(&self, entry: &Entry, record: Record) -> Result<(), RegistryError> {
        if record.is_paused() || entry.record().is_paused() {
            self.records.put_durably(entry.id.as_str(), &record)?;
        } else {
            self.records.put(entry.id.as_str(), &record)?;
        }
        entry.set_record(record);
        self.time_changed.notify_one();
        Ok(())
    }

    /// Forgets a sandbox that is not there any more, and removes what is left of it. Under the entry's `change` lock.
    fn lose(&self, entry: &Entry) -> Result<(), RegistryError> {
        entry.set_gone();
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&entry.id);
        self.remove_snapshot_of_manager(&life::paused_name(entry)?)?;
        let record = entry.record();
        self.trails.outlives(&entry.id, &record.owner)?;
        if record.is_paused() {
            self.records.remove_durably(entry.id.as_str())?;
        } else {
            self.records.remove(entry.id.as_str())?;
        }
        Ok(())
    }
}

/// A name nobody has.
fn new_name(prefix: &str) -> Result<SandboxName, RegistryError> {
    let random = random::<8>().map_err(RegistryError::Entropy)?;
    SandboxName::try_from(format!("{prefix}-{}", hex::encode(random)))
        .map_err(|error| RegistryError::Entropy(io::Error::other(error)))
}
