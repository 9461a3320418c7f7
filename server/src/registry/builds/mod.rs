//! Builds of templates: from a client's steps to a snapshot with the start command running, which sandboxes are made from.
//!
//! ```text
//! request ─> waiting ─> start ─> building: base ─> steps ─> start command ─> snapshot ─> ready
//!                                   └── failure, another build, deletion, restart ──> error
//! ```
//! A build has one machine, which counts as a sandbox of its key. An image is used only after the registry gave its manifest for
//! the credentials of this very build: that another key pulled it gives nothing.

mod base;
pub(super) mod known;
#[cfg(test)]
#[path = "../../../../tests/host/registry.rs"]
#[allow(dead_code, reason = "each user has a part")]
mod local_registry;
mod run;
#[cfg(test)]
mod tests;

use super::{
    error::RegistryError,
    state::{Registry, new_name},
};
use crate::{
    access::{keys::Key, tokens::random},
    builds::log::BuildLog,
    channel::request::BuildSpec,
    config::images::Refused,
    store::{FORMAT, StoreError},
    templates::built::{self, Build, BuiltTemplate, DEFAULT_TAG, Reason, Status, Tag},
};
use known::{Running, now};
use sandboxvm_build::e2b::{self, PlanRequest, Setting};
use sandboxvm_manager::SandboxName;
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Snapshots of builds, before their random part. No build of images uses it.
const MADE: &str = "made";
/// Failed builds of a template that are kept.
const FAILED_KEPT: usize = 5;
/// Templates of one key.
const MAX_TEMPLATES: usize = 200;
/// Tags of one template.
const MAX_TAGS: usize = 100;
const MAX_NAME: usize = 128;

/// Why a template cannot be built, shown or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("template {0:?} was not found")]
    Unknown(String),
    #[error("build {0:?} was not found")]
    UnknownBuild(String),
    #[error("tag {0:?} was not found")]
    UnknownTag(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("build {0} is not waiting to be started")]
    NotWaiting(String),
    #[error("this API key has {0} builds that run, and that is its limit; wait for one of them")]
    Quota(usize),
    #[error("this API key has {0} templates, and that is the limit; delete one first")]
    Templates(usize),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for BuildError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

type Done<T> = Result<T, BuildError>;

/// A build that was started, and has to be run.
#[derive(Debug)]
pub(crate) struct Job {
    key: Key,
    template: SandboxName,
    build: String,
    spec: BuildSpec,
    log: Arc<BuildLog>,
    cancel: CancellationToken,
}

fn uuid() -> Done<String> {
    let mut bytes = random::<16>().map_err(RegistryError::Entropy)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

fn check_word(what: &str, text: &str) -> Done<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(fits) {
        true => Ok(()),
        false => Err(BuildError::Invalid(format!(
            "invalid {what} {:?}: use 1-{MAX_NAME} characters from a-z, A-Z, 0-9 and -_.",
            text.chars().take(MAX_NAME).collect::<String>()
        ))),
    }
}

impl Registry {
    /// Writes down that a template is to be built. The same name is the same template.
    pub(crate) fn request_build(
        &self,
        key: &Key,
        asked: &str,
        tags: &[String],
        cpus: Option<u32>,
        memory: Option<u64>,
    ) -> Done<(BuiltTemplate, Build)> {
        self.may_build(key)?;
        let (name, tag) = built::with_tag(asked);
        let name = name.rsplit('/').next().unwrap_or(name);
        check_word("name", name)?;
        if self.templates.contains_key(name) {
            return Err(BuildError::Invalid(format!("invalid name {name:?}: a template of this server has this name")));
        }
        let mut tags: Vec<String> = tag.map(str::to_owned).into_iter().chain(tags.iter().cloned()).collect();
        tags.dedup();
        if tags.is_empty() {
            tags.push(DEFAULT_TAG.to_owned());
        }
        if tags.len() > MAX_TAGS {
            return Err(BuildError::Invalid(format!("invalid tags: must have at most {MAX_TAGS} entries")));
        }
        tags.iter().try_for_each(|tag| check_word("tag", tag))?;
        let (max_cpus, max_memory) = (self.builds.config.max_cpus, self.builds.config.max_memory);
        if cpus.is_some_and(|cpus| !(1..=max_cpus).contains(&cpus)) {
            return Err(BuildError::Invalid(format!("invalid cpuCount: must be between 1 and {max_cpus}")));
        }
        if memory.is_some_and(|memory| !(128..=max_memory).contains(&memory)) {
            return Err(BuildError::Invalid(format!("invalid memoryMB: must be between 128 and {max_memory}")));
        }
        let at = now();
        let build = Build {
            id: uuid()?,
            status: Status::Waiting,
            tags,
            reason: None,
            created_at: at,
            updated_at: at,
            cpus: cpus.unwrap_or(0),
            memory: memory.unwrap_or(0),
            disk: 0,
            image: None,
            result: None,
        };
        let templates = &self.builds.templates;
        if let Some(known) = templates.of(&key.id).into_iter().find(|template| template.name == name) {
            let changed = templates.change(&known.id, |template| {
                template.builds.push(build.clone());
                let taken = template.take_unnamed(FAILED_KEPT);
                (template.clone(), taken)
            })?;
            let (template, taken) = changed.ok_or_else(|| BuildError::Unknown(name.to_owned()))?;
            self.drop_builds(&taken);
            return Ok((template, build));
        }
        let count = templates.of(&key.id).len();
        if count >= MAX_TEMPLATES {
            return Err(BuildError::Templates(count));
        }
        let template = BuiltTemplate {
            format: FORMAT,
            id: new_name("tpl")?,
            owner: key.id.clone(),
            name: name.to_owned(),
            created_at: at,
            tags: BTreeMap::new(),
            builds: vec![build.clone()],
        };
        templates.add(template.clone())?;
        Ok((template, build))
    }

    /// A key that may use some templates alone may not make others.
    fn may_build(&self, key: &Key) -> Done<()> {
        match key.limits.templates.is_empty() {
            true => Ok(()),
            false => {
                Err(BuildError::Forbidden("this API key is limited to templates, and may not build others".into()))
            }
        }
    }

    /// A key's template, by name or ID.
    pub(crate) fn built(&self, key: &Key, asked: &str) -> Done<BuiltTemplate> {
        self.builds.templates.find(&key.id, asked).ok_or_else(|| BuildError::Unknown(asked.chars().take(200).collect()))
    }

    /// A key's build.
    pub(crate) fn build_of(&self, key: &Key, template: &str, build: &str) -> Done<(BuiltTemplate, Build)> {
        let template = self.built(key, template)?;
        let found = template.build(build).cloned();
        let found = found.ok_or_else(|| BuildError::UnknownBuild(build.chars().take(200).collect()))?;
        Ok((template, found))
    }

    /// Checks a build, cancels the one of the same template that runs, and returns what has to be run.
    pub(crate) fn start_build(&self, key: &Key, template: &str, build: &str, spec: BuildSpec) -> Done<Job> {
        self.may_build(key)?;
        let (template, build) = self.build_of(key, template, build)?;
        if build.status != Status::Waiting {
            return Err(BuildError::NotWaiting(build.id));
        }
        self.check_spec(key, &spec)?;
        let (log, cancel) = (Arc::<BuildLog>::default(), CancellationToken::new());
        let new = Running {
            owner: key.id.clone(),
            template: template.id.clone(),
            log: Arc::clone(&log),
            cancel: cancel.clone(),
        };
        {
            // Counted and added in one step, so that concurrent requests do not exceed the limit.
            let mut running = self.builds.running();
            let is_other = |other: &&Running| other.owner == key.id && other.template != template.id;
            let count = running.values().filter(is_other).count();
            if count >= self.builds.config.builds_per_key.max(1) {
                return Err(BuildError::Quota(count));
            }
            if running.contains_key(&build.id) {
                return Err(BuildError::NotWaiting(build.id));
            }
            for other in running.values().filter(|other| other.template == template.id) {
                other.cancel.cancel();
            }
            running.insert(build.id.clone(), new);
        }
        let was_waiting = self.builds.templates.change(&template.id, |template| {
            let build = template.build_mut(&build.id).filter(|build| build.status == Status::Waiting);
            build.map(|build| build.status = Status::Building).is_some()
        });
        if !matches!(was_waiting, Ok(Some(true))) {
            self.builds.running().remove(&build.id);
            was_waiting?;
            return Err(BuildError::NotWaiting(build.id));
        }
        Ok(Job { key: key.clone(), template: template.id, build: build.id, spec, log, cancel })
    }

    /// Notes that a started build is not run.
    pub(crate) fn abandon_build(&self, key: &Key, template: &str, build: &str, message: &str) -> Done<()> {
        self.builds.running().remove(build);
        let (template, build) = self.build_of(key, template, build)?;
        self.builds.templates.change(&template.id, |template| {
            if let Some(build) = template.build_mut(&build.id) {
                build.status = Status::Error;
                build.reason = Some(Reason { message: message.to_owned(), step: None });
            }
        })?;
        Ok(())
    }

    /// What can be said before a build runs.
    fn check_spec(&self, key: &Key, spec: &BuildSpec) -> Done<()> {
        match (&spec.from_image, &spec.from_template) {
            (Some(image), None) => {
                if !self.is_base(image) {
                    self.builds.config.permitted(image).map_err(|refused| match refused {
                        Refused::Invalid(message) => BuildError::Invalid(message),
                        Refused::Forbidden(message) => BuildError::Forbidden(message),
                    })?;
                }
            }
            (None, Some(template)) => drop(self.template_base(key, template)?),
            _ => return Err(BuildError::Invalid("a template needs either fromImage or fromTemplate".into())),
        }
        // The origin is not known yet, and does not matter for what is wrong with a step.
        let (owner, origin, setting) = (key.id.0.as_str(), "", Setting::of_image(Vec::new()));
        let plan = e2b::plan(&PlanRequest { owner, origin, setting, force: spec.force, steps: &spec.steps });
        plan.map(drop).map_err(|faulty| BuildError::Invalid(faulty.to_string()))
    }

    /// Removes what builds have that no record names any more.
    fn drop_builds(&self, builds: &[Build]) {
        for build in builds {
            let removed =
                build.result.as_ref().map_or(Ok(()), |result| self.remove_snapshot_of_manager(&result.snapshot));
            let removed = removed.and_then(|()| Ok(self.builds.logs.remove(&build.id)?));
            if let Err(error) = removed {
                // The next server removes it.
                tracing::warn!(build = %build.id, %error, "cannot remove a build");
            }
        }
        // Those of an image that no build begins with any more are of use to no key.
        let needed = self.builds.templates.images(None);
        let unneeded = builds.iter().filter_map(|build| build.image.clone()).filter(|image| !needed.contains(image));
        self.evict_ready_snapshots(unneeded.collect());
    }

    /// Removes the ready snapshots of images, except those of templates of the configuration. They are made again when they
    /// are needed. Returns whether there was one to remove.
    pub(super) fn evict_ready_snapshots(&self, mut images: Vec<String>) -> bool {
        let configured = |image: &String| {
            let mut templates = self.templates.values().filter_map(|template| template.spec.image_defaults.as_ref());
            templates.any(|defaults| defaults.digest == *image)
        };
        images.retain(|image| !configured(image));
        if images.is_empty() {
            return false;
        }
        if let Err(error) = self.manager.remove_ready_snapshots(&images) {
            tracing::warn!(%error, "cannot remove the ready snapshots of an image");
        }
        true
    }

    /// Removes a template of the key with its builds; false when there is none.
    pub(crate) fn remove_built(&self, key: &Key, asked: &str) -> Done<bool> {
        let Some(template) = self.builds.templates.find(&key.id, asked) else { return Ok(false) };
        self.builds.cancel(&template.id);
        self.builds.templates.remove(&template.id)?;
        self.drop_builds(&template.builds);
        Ok(true)
    }

    /// Gives the build that `target` names further tags.
    pub(crate) fn assign_tags(&self, key: &Key, target: &str, tags: &[String]) -> Done<String> {
        self.may_build(key)?;
        let (name, which) = built::with_tag(target);
        let template = self.built(key, name)?;
        let build = template.ready(which).map(|(build, _)| build.id.clone());
        let build =
            build.ok_or_else(|| BuildError::UnknownTag(which.unwrap_or(DEFAULT_TAG).chars().take(200).collect()))?;
        tags.iter().try_for_each(|tag| check_word("tag", tag))?;
        if tags.is_empty() || template.tags.len() + tags.len() > MAX_TAGS {
            return Err(BuildError::Invalid(format!("invalid tags: a template has at most {MAX_TAGS}")));
        }
        self.builds.templates.change(&template.id, |template| {
            for tag in tags {
                template.tags.insert(tag.clone(), Tag { build: build.clone(), created_at: now() });
            }
        })?;
        Ok(build)
    }

    /// Removes tags. A build without a tag stays until a newer one is ready.
    pub(crate) fn remove_tags(&self, key: &Key, name: &str, tags: &[String]) -> Done<()> {
        self.may_build(key)?;
        let template = self.built(key, name)?;
        if let Some(unknown) = tags.iter().find(|tag| !template.tags.contains_key(*tag)) {
            return Err(BuildError::UnknownTag(unknown.chars().take(200).collect()));
        }
        self.builds.templates.change(&template.id, |template| {
            template.tags.retain(|tag, _| !tags.contains(tag));
        })?;
        Ok(())
    }

    /// Removes snapshots of builds that no record names: of a server that was killed.
    pub(super) fn remove_lost_builds(&self) -> Result<(), RegistryError> {
        let named = self.builds.templates.snapshots(None);
        let prefix = format!("{MADE}-");
        for name in self.manager.snapshots()?.into_iter().filter_map(|manifest| manifest.name) {
            if name.as_str().starts_with(&prefix) && !named.contains(&name) {
                self.remove_snapshot_of_manager(&name)?;
            }
        }
        Ok(())
    }
}
