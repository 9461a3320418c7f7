//! Builds of templates: from a client's steps to a snapshot with the start command running, which sandboxes are made from.
//!
//! ```text
//! request ─> waiting ─> start ─> building: base ─> steps ─> start command ─> snapshot ─> ready
//!                                   └── failure, another build, deletion, restart ──> error
//! ```
//! A build has one machine, which counts as a sandbox of its key. An image is used only after the registry gave its manifest for
//! the credentials of this very build: that another key pulled it gives nothing.

use super::{
    building::{Running, now, states_of},
    error::RegistryError,
    state::{Registry, new_name},
};
use crate::{
    access::{keys::Key, tokens::random},
    builds::log::{BuildLog, Level, step_name},
    channel::request::BuildSpec,
    config::{TemplateConfig, images::Refused},
    store::{FORMAT, StoreError},
    templates::{
        Source, TemplateError,
        built::{self, Build, BuiltTemplate, DEFAULT_TAG, Reason, Status, Tag},
        find,
    },
};
use sandboxvm_build::{
    e2b::{self, PlanRequest, Setting, TemplateRequest},
    engine::{BaseImage, Machine, Process, Progress, Stream},
    machines::{MachineOptions, SandboxMachine, SandboxMachines},
};
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{ImageStore, MIB, MemorySize, NetworkSpec, SandboxName, StartFrom, VcpuCount};
use sandboxvm_oci::{PullOptions, Silent, config::ImageConfig, registry::Credentials};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The image that E2B's clients name if their user names none: here it is the template `base`.
const E2B_BASE: &str = "e2bdev/base";
/// Snapshots of builds, before their random part. No build of images uses it.
const MADE: &str = "made";
/// Failed builds of a template that are kept.
const FAILED_KEPT: usize = 5;
/// Templates of one key.
const MAX_TEMPLATES: usize = 200;
/// Tags of one template.
const MAX_TAGS: usize = 100;
const MAX_NAME: usize = 128;
/// Maximum length of a reason, in characters.
const MAX_REASON: usize = 2000;
/// MiB of a template whose client states none.
const DEFAULT_MEMORY: u64 = 1024;
/// Between two tries of the ready command.
const READY_EVERY: Duration = Duration::from_secs(2);
/// Longest time until the ready command has to succeed.
const READY_WITHIN: Duration = Duration::from_secs(600);
/// As E2B: how long a start command without a ready command may take.
const READY_DEFAULT: &str = "sleep 20";
/// Uploads may have so many times their size without compression.
const COMPRESSION: u64 = 20;

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

/// A failed part of a build.
struct Failed {
    step: Option<String>,
    message: String,
}

fn failed(step: &str) -> impl Fn(String) -> Failed + Copy {
    move |message| Failed { step: Some(step.to_owned()), message }
}

/// What a build begins with.
struct Base {
    origin: String,
    image: BaseImage,
    setting: Setting,
    start_from: Option<StartFrom>,
    cpus: u32,
    memory: u64,
    disk: u64,
    has_card: bool,
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

    /// True for the image that stands for the template `base`.
    fn is_base(&self, image: &str) -> bool {
        image.strip_suffix(":latest").unwrap_or(image) == E2B_BASE && self.templates.contains_key("base")
    }

    /// Runs a build to its end, whatever that is.
    pub(crate) async fn run_build(&self, job: Job) {
        let within = Duration::from_secs(self.builds.config.build_timeout.max(1));
        let outcome = tokio::select! {
            () = job.cancel.cancelled() => {
                Err(Failed { step: None, message: "the build was cancelled".into() })
            }
            built = timeout(within, self.try_build(&job)) => built.unwrap_or_else(|_| {
                Err(Failed { step: None, message: format!("the build took more than {} s", within.as_secs()) })
            }),
        };
        if let Err(Failed { message, .. }) = &outcome {
            job.log.say(Level::Error, message);
        }
        if let Err(error) = self.builds.logs.put(&job.build, &job.log.lines()) {
            tracing::warn!(%error, "cannot keep the log of a build");
        }
        if let Err(error) = self.finish_build(&job, outcome) {
            tracing::error!(template = %job.template, %error, "cannot keep the result of a build");
        }
        self.builds.running().remove(&job.build);
    }

    fn finish_build(&self, job: &Job, outcome: Result<(Build, built::Result), Failed>) -> Done<()> {
        let made = outcome.as_ref().ok().map(|(_, result)| result.snapshot.clone());
        let taken = self.builds.templates.change(&job.template, |template| {
            let at = now();
            let Some(build) = template.build_mut(&job.build) else { return Vec::new() };
            build.updated_at = at;
            match outcome {
                Ok((made, result)) => {
                    (build.status, build.result) = (Status::Ready, Some(result));
                    (build.cpus, build.memory, build.disk) = (made.cpus, made.memory, made.disk);
                    let (id, tags) = (build.id.clone(), build.tags.clone());
                    for tag in tags {
                        template.tags.insert(tag, Tag { build: id.clone(), created_at: at });
                    }
                }
                Err(Failed { step, message }) => {
                    // It can contain words of a guest or registry.
                    let message = message.chars().filter(|char| !char.is_control()).take(MAX_REASON).collect();
                    build.status = Status::Error;
                    build.reason = Some(Reason { message, step });
                }
            }
            template.take_unnamed(FAILED_KEPT)
        });
        match taken {
            Ok(Some(taken)) => self.drop_builds(&taken),
            // The template was deleted meanwhile, or its record cannot be written.
            other => {
                if let Some(snapshot) = made {
                    self.remove_snapshot_of_manager(&snapshot)?;
                }
                other?;
            }
        }
        Ok(())
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
    }

    async fn try_build(&self, job: &Job) -> Result<(Build, built::Result), Failed> {
        let base_failed = failed("base");
        job.log.say(Level::Info, "the build waits for its turn");
        let _turn = self.builds.turns.acquire().await.map_err(|error| base_failed(error.to_string()))?;
        let _place = self.reserve(&job.key, 1).map_err(|error| base_failed(error.to_string()))?;
        let (_, build) =
            self.build_of(&job.key, job.template.as_str(), &job.build).map_err(|e| base_failed(e.to_string()))?;
        let images = self.manager.images(&self.bundle, self.builds.config.options());
        let images = images.map_err(|error| base_failed(error.to_string()))?;
        let base = self.base(job, &build, &images).await.map_err(base_failed)?;
        self.check_storage_for(&job.key, base.memory.saturating_mul(MIB))
            .await
            .map_err(|e| base_failed(e.to_string()))?;
        let options = self.machine_options(&job.key, &base).map_err(base_failed)?;
        let machines = SandboxMachines::open(self.manager.clone(), self.bundle.clone(), images, options);
        let machines = machines.map_err(|error| base_failed(error.to_string()))?;
        let request = PlanRequest {
            owner: &job.key.id.0,
            origin: &base.origin,
            setting: base.setting.clone(),
            force: job.spec.force,
            steps: &job.spec.steps,
        };
        let plan = e2b::plan(&request);
        let plan = plan.map_err(|faulty| Failed { step: Some(step_name(faulty.step)), message: faulty.problem })?;
        let uploads = self.builds.uploads.of(&job.key.id);
        let request = TemplateRequest {
            plan: &plan,
            base: &base.image,
            uploads: &uploads,
            max_upload: self.builds.uploads.most().saturating_mul(COMPRESSION),
        };
        let finished = e2b::build_template(&request, &machines, &*job.log)
            .await
            .map_err(|failure| Failed { step: Some(step_name(failure.step)), message: failure.to_string() })?;
        let mut machine = finished.machine;
        let setting = Setting { workdir: finished.workdir, ..plan.setting };
        let finalize = failed("finalize");
        self.begin_command(job, &mut machine, &setting).await.map_err(finalize)?;
        let snapshot = new_name(MADE).map_err(|error| finalize(error.to_string()))?;
        job.log.say(Level::Info, "the snapshot is taken");
        machine.snapshot(snapshot.clone()).await.map_err(|error| finalize(error.to_string()))?;
        // A machine that does not end is removed with this process.
        let _ = machine.finish().await;
        if let Err(error) = self.check_storage_for(&job.key, 0).await {
            let _ = self.remove_snapshot_of_manager(&snapshot);
            return Err(finalize(error.to_string()));
        }
        job.log.say(Level::Info, "the template is ready");
        let result = built::Result { snapshot, user: setting.user, workdir: setting.workdir, env: setting.env };
        Ok((Build { cpus: base.cpus, memory: base.memory, disk: base.disk, ..build }, result))
    }

    async fn base(&self, job: &Job, build: &Build, images: &ImageStore) -> Result<Base, String> {
        let spec = &job.spec;
        let template = match (&spec.from_image, &spec.from_template) {
            (Some(image), _) if self.is_base(image) => Some("base"),
            (_, template) => template.as_deref(),
        };
        let mut base = match (template, &spec.from_image) {
            (Some(template), _) => self.template_base(&job.key, template).map_err(|error| error.to_string())?,
            (None, Some(image)) => self.image_base(job, image, images).await?,
            (None, None) => return Err("a template needs either fromImage or fromTemplate".to_owned()),
        };
        // A machine that is restored from a snapshot has the size of it.
        if !matches!(base.start_from, Some(StartFrom::Snapshot(_))) {
            let stated = |stated: u64, usual: u64| if stated == 0 { usual } else { stated };
            base.cpus = if build.cpus == 0 { base.cpus } else { build.cpus };
            base.memory = stated(build.memory, base.memory);
        }
        Ok(base)
    }

    async fn image_base(&self, job: &Job, image: &str, images: &ImageStore) -> Result<Base, String> {
        let config = &self.builds.config;
        let reference = config.permitted(image).map_err(|error| error.to_string())?.to_string();
        let store = images.images();
        let stored = store.list().map_err(|error| error.to_string())?.iter().map(|image| image.size).sum::<u64>();
        if stored >= config.storage.saturating_mul(MIB) {
            return Err("the image store of this server is full".to_owned());
        }
        job.log.say(Level::Info, &format!("the image {reference} is pulled"));
        let login = spec_credentials(&job.spec);
        let pulled = store.pull(&reference, PullOptions { credentials: login }, Arc::new(Silent)).await;
        let digest = pulled.map_err(|error| format!("cannot pull {reference}: {error}"))?.manifest.to_string();
        let details = store.inspect(&digest).map_err(|error| error.to_string())?;
        let config_of_image = details.configuration.image;
        Ok(Base {
            origin: format!("image {digest}"),
            setting: Setting::of_image(config_of_image.env.clone()),
            image: BaseImage { digest, config: config_of_image },
            start_from: None,
            cpus: 1,
            memory: DEFAULT_MEMORY.min(config.max_memory),
            disk: config.disk,
            has_card: self.network.has_cards(),
        })
    }

    /// A configured template, or a template or snapshot of the key's own.
    fn template_base(&self, key: &Key, asked: &str) -> Done<Base> {
        let unknown = || BuildError::Unknown(asked.chars().take(200).collect());
        let of_snapshot = |snapshot: &SandboxName, origin: String, setting: Setting| {
            let machines = self.manager.snapshots().map_err(RegistryError::from)?;
            let machine = machines.into_iter().find(|machine| machine.name.as_ref() == Some(snapshot));
            let machine = machine.ok_or_else(unknown)?;
            Ok(Base {
                image: BaseImage { digest: origin.clone(), config: ImageConfig::default() },
                origin,
                setting,
                start_from: Some(StartFrom::Snapshot(snapshot.clone())),
                cpus: u32::from(machine.vcpus),
                memory: machine.memory_bytes.mib(),
                disk: machine.disk_bytes / MIB,
                has_card: machine.network_card,
            })
        };
        let plain = |user: &str| Setting { user: user.to_owned(), ..Setting::of_image(Vec::new()) };
        let (name, which) = built::with_tag(asked);
        if let Some(template) = self.builds.templates.find(&key.id, name) {
            let (build, result) = template.ready(which).ok_or_else(unknown)?;
            let built::Result { snapshot, user, workdir, env } = result.clone();
            return of_snapshot(&snapshot, format!("build {}", build.id), Setting { user, workdir, env });
        }
        match find(&self.templates, self.snapshots.of(&key.id), key, asked) {
            Ok(Source::Snapshot(record)) if record.memory => {
                of_snapshot(&record.id, format!("snapshot {}", record.id), plain(&record.user))
            }
            Ok(Source::Snapshot(_)) => {
                Err(BuildError::Unsupported("a template from a snapshot without memory is not supported".into()))
            }
            Ok(Source::Template(template)) => match &template.spec.start_from {
                StartFrom::Snapshot(name) => {
                    of_snapshot(name, format!("template {asked} {name}"), plain(&template.config.user))
                }
                start_from => Ok(Base {
                    origin: format!("template {asked}"),
                    image: BaseImage { digest: format!("template {asked}"), config: ImageConfig::default() },
                    setting: plain(&template.config.user),
                    start_from: Some(start_from.clone()),
                    cpus: template.config.cpus,
                    memory: template.config.memory,
                    disk: template.config.disk,
                    has_card: self.network.has_cards(),
                }),
            },
            Ok(Source::Built(_)) | Err(TemplateError::Unknown(_)) => Err(unknown()),
            Err(error) => Err(BuildError::Forbidden(error.to_string())),
        }
    }

    fn machine_options(&self, key: &Key, base: &Base) -> Result<MachineOptions, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let usual = TemplateConfig::default().spec("template").map_err(|error| text(&error))?;
        let network = base.has_card.then(|| NetworkSpec {
            limits: self.network.limits(self.sandboxes_of(key)),
            ..self.builds.network.clone()
        });
        Ok(MachineOptions {
            vcpus: VcpuCount::try_from(base.cpus).map_err(|error| text(&error))?,
            memory: MemorySize::try_from(base.memory.saturating_mul(MIB)).map_err(|error| text(&error))?,
            disk: DiskSize::try_from(base.disk.saturating_mul(MIB)).map_err(|error| text(&error))?,
            network,
            supervisor: Some(self.supervisor.clone()),
            states: states_of(&key.id),
            max_states: self.builds.config.states_per_key,
            limits: usual.limits,
            start_from: base.start_from.clone(),
            ..MachineOptions::default()
        })
    }

    /// Starts the start command, and waits until the ready command succeeds.
    async fn begin_command(&self, job: &Job, machine: &mut SandboxMachine, setting: &Setting) -> Result<(), String> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let (start, ready) = (given(&job.spec.start_cmd), given(&job.spec.ready_cmd));
        let process = |command: String| Process {
            command: ["/bin/bash", "-l", "-c", &command].map(str::to_owned).to_vec(),
            env: setting.env.clone(),
            user: setting.user.clone(),
            workdir: setting.workdir.clone(),
            no_network: false,
        };
        let has_start = start.is_some();
        if let Some(start) = start {
            job.log.say(Level::Info, &format!("the start command runs: {start}"));
            machine.start_process(&process(start)).await.map_err(|error| error.to_string())?;
        }
        let Some(ready) = ready.or_else(|| has_start.then(|| READY_DEFAULT.to_owned())) else { return Ok(()) };
        job.log.say(Level::Info, &format!("the ready command is tried: {ready}"));
        let until = Instant::now() + READY_WITHIN;
        let mut output = |stream: Stream, bytes: &[u8]| {
            job.log.notify(sandboxvm_build::engine::Event::Output(stream, bytes));
        };
        loop {
            let check = process(ready.clone());
            match tokio::time::timeout_at(until, machine.run(&check, &mut output)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => break,
            }
            if Instant::now() + READY_EVERY > until {
                break;
            }
            sleep(READY_EVERY).await;
        }
        Err(format!("the ready command did not succeed within {} s", READY_WITHIN.as_secs()))
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

fn spec_credentials(spec: &BuildSpec) -> Option<Credentials> {
    let login = spec.login.as_ref()?;
    Some(Credentials::Password { user: login.user.clone(), password: login.password.clone() })
}

#[cfg(test)]
#[path = "../../../tests/host/registry.rs"]
#[allow(dead_code, reason = "each user has a part")]
mod local_registry;

#[cfg(test)]
mod tests {
    use super::{
        local_registry::{Registry as LocalRegistry, layout, run},
        *,
    };
    use crate::{
        access::keys::{KeyId, KeyLimits},
        channel::request::RegistryLogin,
        config::{Config, images::ImagesConfig},
    };
    use sandboxvm_images::bundle::{Bundle, BundleSources};
    use sandboxvm_manager::{Manager, SupervisorProgram};
    use std::fs;

    fn open(home: &std::path::Path, images: ImagesConfig) -> Registry {
        let bundle = Bundle::find(&BundleSources::default());
        let supervisor = SupervisorProgram { program: "/nonexistent".into(), arguments: Vec::new() };
        let config = Config { images, ..Config::default() };
        Registry::open(&config, Manager::open(home).unwrap(), bundle, supervisor).unwrap()
    }

    fn key(id: &str) -> Key {
        Key { id: KeyId(id.into()), account: KeyId(id.into()), limits: KeyLimits::default() }
    }

    fn spec(image: &str, login: Option<(&str, &str)>) -> BuildSpec {
        BuildSpec {
            from_image: Some(image.to_owned()),
            from_template: None,
            login: login.map(|(user, password)| RegistryLogin { user: user.into(), password: password.into() }),
            force: false,
            steps: Vec::new(),
            start_cmd: None,
            ready_cmd: None,
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn private_image_needs_the_credentials_of_each_build() {
        let (home, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let passwords = data.path().join("htpasswd").display().to_string();
        run("htpasswd", &["-Bbc", &passwords, "user", "secret"]);
        fs::create_dir(data.path().join("root")).unwrap();
        fs::write(data.path().join("root/file"), "private").unwrap();
        let oci = data.path().join("layout");
        layout(&oci, &data.path().join("root"), &["--config.env=A=1"]);
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {passwords}\n");
        let from = format!("oci:{}:test", oci.display());
        let local = LocalRegistry::start(data, "", &auth);
        let image = format!("{}/app", local.host());
        let to = format!("docker://{image}");
        run("skopeo", &["copy", "--dest-tls-verify=false", "--dest-creds", "user:secret", &from, &to]);
        let images = ImagesConfig {
            registries: vec![local.host()],
            plain_http: vec![local.host()],
            builds_per_key: 1,
            ..ImagesConfig::default()
        };
        let registry = open(&home.path().join("home"), images);
        let base = async |login| {
            let spec = spec(&image, login);
            let (template, build) = (SandboxName::try_from("tpl-1".to_owned()).unwrap(), "b".into());
            let job =
                Job { key: key("1"), template, build, spec, log: Arc::default(), cancel: CancellationToken::new() };
            let images = registry.manager.images(&registry.bundle, registry.builds.config.options()).unwrap();
            registry.image_base(&job, &image, &images).await.map(|base| (base.origin, base.setting.env))
        };
        let (origin, env) = base(Some(("user", "secret"))).await.unwrap();
        assert!(origin.starts_with("image sha256:") && env.contains(&"A=1".to_owned()), "{origin} {env:?}");
        // The blobs are in the store now, and give nothing to a build that the registry refuses.
        for login in [None, Some(("user", "wrong"))] {
            let refused = base(login).await.unwrap_err();
            assert!(refused.starts_with("cannot pull ") && !refused.contains("wrong"), "{refused}");
        }
        assert_eq!(base(Some(("user", "secret"))).await.unwrap().0, origin);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn new_build_of_a_template_cancels_the_one_that_runs() {
        let home = tempfile::tempdir().unwrap();
        let registry = open(home.path(), ImagesConfig::default());
        let key = key("1");
        let from_base = || BuildSpec { from_image: None, from_template: Some("base".into()), ..spec("", None) };
        let request = |name: &str| registry.request_build(&key, name, &[], None, None).unwrap();
        let (template, first) = request("mine");
        let id = template.id.as_str();
        let job = registry.start_build(&key, id, &first.id, from_base()).unwrap();
        assert!(matches!(registry.start_build(&key, id, &first.id, from_base()), Err(BuildError::NotWaiting(_))));
        // Another template has to wait.
        let (other, build) = request("other");
        let started = registry.start_build(&key, other.id.as_str(), &build.id, from_base());
        assert!(matches!(started, Err(BuildError::Quota(1))));
        let (_, second) = request("mine");
        let next = registry.start_build(&key, id, &second.id, from_base()).unwrap();
        registry.run_build(job).await;
        let shown = registry.build_of(&key, id, &first.id).unwrap().1;
        assert_eq!((shown.status, shown.reason.unwrap().message.as_str()), (Status::Error, "the build was cancelled"));
        let lines = registry.builds.lines(&first.id);
        assert_eq!(lines.last().map(|line| line.message.as_str()), Some("the build was cancelled"));
        // A deleted template ends its builds.
        assert!(registry.remove_built(&key, "mine").unwrap());
        registry.run_build(next).await;
        assert!(registry.built(&key, "mine").is_err() && registry.builds.templates.of(&key.id).len() == 1);
    }
}
