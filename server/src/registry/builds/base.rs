//! What a build begins with: an image that its registry gives for its credentials, or a template.

use super::{BuildError, Done, Job};
use crate::{
    access::keys::Key,
    builds::log::Level,
    channel::request::BuildSpec,
    registry::{error::RegistryError, state::Registry},
    templates::{
        Source, TemplateError,
        built::{self, Build},
        find,
    },
};
use sandboxvm_build::{e2b::Setting, engine::BaseImage};
use sandboxvm_manager::{ImageStore, MIB, SandboxName, StartFrom};
use sandboxvm_oci::{PullOptions, Silent, config::ImageConfig, registry::Credentials};
use std::sync::Arc;

/// The image that E2B's clients name if their user names none: here it is the template `base`.
const E2B_BASE: &str = "e2bdev/base";
/// MiB of a template whose client states none.
const DEFAULT_MEMORY: u64 = 1024;

/// What a build begins with.
pub(super) struct Base {
    pub(super) origin: String,
    pub(super) image: BaseImage,
    pub(super) setting: Setting,
    pub(super) start_from: Option<StartFrom>,
    pub(super) cpus: u32,
    pub(super) memory: u64,
    pub(super) disk: u64,
    pub(super) has_card: bool,
}

impl Registry {
    /// True for the image that stands for the template `base`.
    pub(super) fn is_base(&self, image: &str) -> bool {
        image.strip_suffix(":latest").unwrap_or(image) == E2B_BASE && self.templates.contains_key("base")
    }

    pub(super) async fn base(&self, job: &Job, build: &Build, images: &ImageStore) -> Result<Base, String> {
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

    pub(super) async fn image_base(&self, job: &Job, image: &str, images: &ImageStore) -> Result<Base, String> {
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
    pub(super) fn template_base(&self, key: &Key, asked: &str) -> Done<Base> {
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
}

fn spec_credentials(spec: &BuildSpec) -> Option<Credentials> {
    let login = spec.login.as_ref()?;
    Some(Credentials::Password { user: login.user.clone(), password: login.password.clone() })
}
