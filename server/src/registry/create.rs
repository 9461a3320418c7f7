//! New sandboxes: from a template or a snapshot, written down before their client is answered.

use super::{
    entry::Entry,
    error::RegistryError,
    network::{check_proxy, egress::Egress, ingress::Ingress},
    record::{OnTimeout, Phase, Record},
    state::{Intent, Registry, new_name},
    volumes::NewMounts,
};
use crate::{
    access::keys::Key,
    config::TemplateConfig,
    quotas::{count::Reserved, starts::StartPermit},
    store::FORMAT,
    templates::{self, Ready, Source, TemplateError, TemplateId, built},
    volumes::WantedMount,
};
use sandboxvm_manager::{NetworkSpec, PoolRequest, Reach, SandboxName, SandboxSpec, StartFrom, WantedLimits};
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
    pub(crate) egress: Egress,
    pub(crate) volume_mounts: Vec<WantedMount>,
}

impl Registry {
    /// Makes a sandbox and answers when its agent listens and it knows who it is.
    #[tracing::instrument(skip_all)]
    pub(crate) async fn create(&self, key: &Key, wanted: NewSandbox) -> Result<Arc<Entry>, RegistryError> {
        let source = self.source(key, &wanted.template)?;
        let network = self.network_from(key, &source, &wanted)?;
        let mounts = self.mounts(key, &wanted.volume_mounts, wanted.on_timeout)?;
        let mut reserved = self.reserve(key, 1)?;
        self.check_audit(key).await?;
        check_proxy(network.as_ref()).await?;
        let permit = self.starts.begin(&key.id).await?;
        let name = new_name("e2b")?;
        self.intents.put(name.as_str(), &Intent::Make { name: name.clone() })?;
        let made = self.make(key, wanted, source, (name.clone(), network, mounts), &mut reserved, permit).await;
        self.intents.remove(name.as_str())?;
        made
    }

    /// Finds what a sandbox is to be made from: a build of the key's own, or what [`templates::find`] finds.
    fn source(&self, key: &Key, asked: &str) -> Result<Source<'_>, RegistryError> {
        let (name, which) = built::with_tag(asked);
        let found = if key.limits.templates.is_empty() { self.builds.templates.find(&key.id, name) } else { None };
        let Some(template) = found else {
            return Ok(templates::find(&self.templates, self.snapshots.of(&key.id), key, asked)?);
        };
        let unknown = || TemplateError::Unknown(asked.to_owned());
        let (_, result) = template.ready(which).ok_or_else(unknown)?;
        let template = TemplateId(template.id.as_str().to_owned());
        Ok(Source::Built(Box::new(Ready { template, result: result.clone() })))
    }

    /// Returns the network of a new sandbox. A machine that is restored has a network card if its snapshot has: one without has
    /// no network, unless its client asks for one.
    fn network_from(
        &self,
        key: &Key,
        source: &Source<'_>,
        wanted: &NewSandbox,
    ) -> Result<Option<NetworkSpec>, RegistryError> {
        let network = self.wanted_network(&wanted.egress, wanted.allow_internet_access)?;
        let limits = self.network.limits(self.sandboxes_of(key));
        let network = network.map(|network| NetworkSpec { limits, ..network });
        let snapshot = match source {
            Source::Template(template) => match &template.spec.start_from {
                StartFrom::Snapshot(name) => Some(name),
                _ => None,
            },
            Source::Snapshot(snapshot) => Some(&snapshot.id).filter(|_| snapshot.memory),
            Source::Built(ready) => Some(&ready.result.snapshot),
        };
        let Some(snapshot) = snapshot.filter(|_| network.is_some()) else { return Ok(network) };
        if self.manager.snapshot_has_network_card(snapshot)? {
            return Ok(network);
        }
        match wanted.egress.allows_something() && network.is_some_and(|network| network.reach != Reach::Nothing) {
            true => Err(RegistryError::no_card(snapshot)),
            false => Ok(None),
        }
    }

    #[tracing::instrument(skip_all)]
    async fn make(
        &self,
        key: &Key,
        wanted: NewSandbox,
        source: Source<'_>,
        (name, network, mounts): (SandboxName, Option<NetworkSpec>, NewMounts),
        reserved: &mut Reserved<'_>,
        permit: StartPermit,
    ) -> Result<Arc<Entry>, RegistryError> {
        let NewMounts { mounts, volumes, _held } = mounts;
        let request = PoolRequest { name: Some(name), env: wanted.env, ephemeral: false, network };
        let (mut started, template, origin, user, workdir) = match source {
            Source::Template(template) => {
                let name = templates::untagged(&wanted.template).to_owned();
                let started = template.start(&self.manager, request, mounts).await?;
                (started, TemplateId(name.clone()), TemplateId(name), template.config.user.clone(), None)
            }
            Source::Built(ready) => {
                let PoolRequest { name, env, ephemeral, network } = request;
                let built::Result { snapshot, user, workdir, env: of_template } = ready.result;
                let env = over_environment(of_template, env);
                let start_from = StartFrom::Snapshot(snapshot);
                let limits = TemplateConfig::default().spec("template").map(|spec| spec.limits).unwrap_or_default();
                let spec =
                    SandboxSpec { name, env, ephemeral, network, start_from, limits, mounts, ..SandboxSpec::default() };
                let started = self.manager.start(&self.bundle, &spec).await?;
                (started, ready.template.clone(), ready.template, user, Some(workdir))
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
                let spec =
                    SandboxSpec { name, env, ephemeral, network, start_from, limits, mounts, ..SandboxSpec::default() };
                let started = self.manager.start(&self.bundle, &spec).await?;
                (started, TemplateId(snapshot.id.as_str().to_owned()), origin, snapshot.user, snapshot.workdir)
            }
        };
        // Only the guest is waited for: see `starts`.
        drop(permit);
        let ready = async {
            // Volumes can be mounted only while the supervisor serves them.
            if !volumes.is_empty() {
                self.start_network(started.sandbox()).await?;
            }
            started.settled().await?;
            self.start_network(started.sandbox()).await
        };
        if let Err(error) = ready.await {
            // The cause is what the caller needs; what cannot be removed a sweep will name.
            let _ = started.finish().await;
            return Err(error);
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
            egress: wanted.egress.shown(),
            user,
            workdir,
            volumes,
            phase: Phase::Running,
        };
        self.records.put(record.id.as_str(), &record)?;
        let _ = started.detach();
        Ok(reserved.becomes(|| self.add(record)))
    }

    /// The ID of what an alias means to a key, and whether all keys have it.
    pub(crate) fn alias(&self, key: &Key, alias: &str) -> Result<(String, bool), RegistryError> {
        match self.source(key, alias)? {
            Source::Built(ready) => Ok((ready.template.0, false)),
            Source::Template(_) => Ok((templates::untagged(alias).to_owned(), true)),
            Source::Snapshot(snapshot) => Ok((snapshot.id.as_str().to_owned(), false)),
        }
    }
}

/// The environment of a template with what a client states over it.
fn over_environment(of_template: Vec<String>, stated: Vec<String>) -> Vec<String> {
    fn name(entry: &str) -> Option<&str> {
        entry.split('=').next()
    }
    let is_stated = |entry: &String| stated.iter().any(|other| name(other) == name(entry));
    let mut env: Vec<String> = of_template.into_iter().filter(|entry| !is_stated(entry)).collect();
    env.extend(stated);
    env
}
