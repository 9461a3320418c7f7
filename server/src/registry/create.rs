//! New sandboxes: from a template or a snapshot, written down before their client is answered.

use super::{
    entry::Entry,
    error::RegistryError,
    ingress::Ingress,
    record::{OnTimeout, Phase, Record},
    state::{Intent, Registry, new_name},
};
use crate::{
    access::keys::Key,
    quotas::{count::Reserved, starts::StartPermit},
    store::FORMAT,
    templates::{self, Source, TemplateId},
};
use sandboxvm_manager::{PoolRequest, SandboxName, SandboxSpec, StartFrom, WantedLimits};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

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

impl Registry {
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
        let request = PoolRequest { name: Some(name), env: wanted.env, ephemeral: false, network: None };
        let (mut started, template, origin, user) = match source {
            Source::Template(template) => {
                let name = templates::untagged(&wanted.template).to_owned();
                let started = template.start(&self.manager, &self.bundle, request).await?;
                (started, TemplateId(name.clone()), TemplateId(name), template.config.user.clone())
            }
            Source::Snapshot(snapshot) => {
                let PoolRequest { name, env, ephemeral, network } = request;
                let id = snapshot.id.clone();
                let start_from = match snapshot.memory {
                    true => StartFrom::Snapshot(id),
                    false => StartFrom::SnapshotDisk(id),
                };
                // Records of servers before have no origin; their template is one unless it is a snapshot.
                let origin = snapshot.origin.unwrap_or(snapshot.template);
                let limits = self.templates.get(&origin.0).map_or_else(WantedLimits::default, |own| own.spec.limits);
                let spec = SandboxSpec { name, env, ephemeral, network, start_from, limits, ..SandboxSpec::default() };
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

    /// The ID of what an alias means to a key, and whether all keys have it.
    pub(crate) fn alias(&self, key: &Key, alias: &str) -> Result<(String, bool), RegistryError> {
        match templates::find(&self.templates, self.snapshots.of(&key.id), key, alias)? {
            Source::Template(_) => Ok((templates::untagged(alias).to_owned(), true)),
            Source::Snapshot(snapshot) => Ok((snapshot.id.as_str().to_owned(), false)),
        }
    }
}
