//! What sandboxes are made from: the configured templates, each with its pool, and the snapshots that clients made.

pub(crate) mod built;
pub(crate) mod snapshot_index;

use crate::{
    access::keys::{Key, KeyId},
    config::{Config, TemplateConfig, TemplateConfigError, network::ServerNetwork},
};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{
    BootableImage, CreateError, Manager, Mounts, NetworkSpec, Pool, PoolRequest, SandboxId, SandboxName, SandboxSpec,
    StartFrom, StartedSandbox, over_environment_of_image,
};
use sandboxvm_oci::store::Hold;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a sandbox was made from, as clients name it: a template's name or a snapshot's ID.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct TemplateId(pub(crate) String);

/// Why a key cannot use what it asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// No template or snapshot of the key's is called that.
    #[error("template {0:?} was not found; GET /templates lists them")]
    Unknown(String),
    /// The key may not use it.
    #[error("this API key may not use template {0:?}")]
    Forbidden(String),
}

/// A snapshot that a client made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) format: u32,
    /// Its ID, which is also its name among the manager's snapshots.
    pub(crate) id: SandboxName,
    pub(crate) owner: KeyId,
    /// What it is of.
    pub(crate) sandbox: SandboxId,
    /// What its owner calls it.
    pub(crate) names: Vec<String>,
    /// What its sandbox was made from.
    pub(crate) template: TemplateId,
    /// The configured template at the beginning of it all: a snapshot of a sandbox that was made from a snapshot has its.
    #[serde(default)]
    pub(crate) origin: Option<TemplateId>,
    /// Unix time in milliseconds.
    pub(crate) created_at: u64,
    /// Whose commands and files are those of sandboxes made from it.
    pub(crate) user: String,
    /// Where this user's processes start unless a request says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) workdir: Option<String>,
    /// False: what is made from it boots from its disk.
    #[serde(default = "with_memory")]
    pub(crate) memory: bool,
}

/// Of records that were written before there were others.
fn with_memory() -> bool {
    true
}

impl SnapshotRecord {
    /// True when a client means it by `asked`: its ID or one of its names, with or without the tag.
    pub(crate) fn is_called(&self, asked: &str) -> bool {
        let name = untagged(asked);
        self.id.as_str() == name || self.names.iter().any(|own| own == asked || own == name)
    }
}

/// A template without the one tag there is.
pub(crate) fn untagged(asked: &str) -> &str {
    asked.strip_suffix(":default").unwrap_or(asked)
}

/// A configured template.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) config: TemplateConfig,
    pub(crate) spec: SandboxSpec,
    /// What its machines boot: the bundle of the server, or that with another image.
    bundle: Bundle,
    pool: Option<Pool>,
    /// Keeps the image from removal.
    _image: Option<Hold>,
}

impl Template {
    /// A machine of this kind; one of the pool's where there is one.
    pub(crate) async fn start(
        &self,
        manager: &Manager,
        request: PoolRequest,
        mounts: Mounts,
    ) -> Result<StartedSandbox, CreateError> {
        let env = over_environment_of_image(self.spec.env.clone(), request.env);
        let request = PoolRequest { env, ..request };
        match &self.pool {
            // What a machine of the pool mounts was decided when it was made.
            Some(pool) if mounts.is_empty() => pool.take(&request).await,
            _ => {
                let PoolRequest { name, env, ephemeral, network } = request;
                let spec = SandboxSpec { name, env, ephemeral, network, mounts, ..self.spec.clone() };
                manager.start(&self.bundle, &spec).await
            }
        }
    }

    /// Machines that wait in its pool.
    pub(crate) fn armed(&self) -> usize {
        self.pool.as_ref().map_or(0, Pool::armed)
    }
}

/// The configured templates, with their pools being filled from now on.
pub(crate) fn configured(
    config: &Config,
    network: &ServerNetwork,
    manager: &Manager,
    bundle: &Bundle,
) -> Result<BTreeMap<String, Template>, TemplateConfigError> {
    let all = config;
    let made = all.templates.iter().map(|(name, config)| {
        let mut spec = config.spec(name)?;
        // A pool's machines have the card; what they may reach is the affair of each sandbox.
        spec.network = (network.has_cards() && has_card(name, &spec, manager)).then(NetworkSpec::default);
        let (mut bundle, mut hold) = (bundle.clone(), None);
        if let Some(image) = &config.image {
            let image = boot(manager, &bundle, all, image)
                .map_err(|error| TemplateConfigError { template: name.clone(), problem: error.to_string() })?;
            (bundle.image, spec.env, spec.image_defaults) = (image.disk, image.env, Some(image.defaults));
            hold = Some(image.hold);
        }
        let pool = (config.pool > 0).then(|| Pool::new(manager.clone(), bundle.clone(), spec.clone(), config.pool));
        Ok((name.clone(), Template { config: config.clone(), spec, bundle, pool, _image: hold }))
    });
    made.collect()
}

/// Returns an image of the home, ready to boot.
fn boot(
    manager: &Manager,
    bundle: &Bundle,
    config: &Config,
    image: &str,
) -> Result<BootableImage, sandboxvm_manager::ImageError> {
    manager.images(bundle, config.images.options())?.bootable_now(image)
}

/// True unless the machines of a template are restored from a snapshot without a network card.
fn has_card(template: &str, spec: &SandboxSpec, manager: &Manager) -> bool {
    let StartFrom::Snapshot(snapshot) = &spec.start_from else { return true };
    // One that cannot be read is reported by its first use.
    let has_card = manager.snapshot_has_network_card(snapshot).unwrap_or(true);
    if !has_card {
        tracing::warn!(
            "sandboxes of template {template} have no network: the machine of snapshot {snapshot} has no network card"
        );
    }
    has_card
}

/// What a client asked for, found.
#[derive(Debug)]
pub(crate) enum Source<'t> {
    Template(&'t Template),
    Snapshot(SnapshotRecord),
    /// A build of a template of the key's own.
    Built(Box<Ready>),
}

/// A build that is ready.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) template: TemplateId,
    pub(crate) result: built::Result,
}

/// Finds what `asked` is: a template's name, the ID or name of one of the key's own snapshots (newest first, so that the last
/// of a name counts), each with or without a tag.
pub(crate) fn find<'t>(
    templates: &'t BTreeMap<String, Template>,
    own: Vec<SnapshotRecord>,
    key: &Key,
    asked: &str,
) -> Result<Source<'t>, TemplateError> {
    let name = untagged(asked);
    let snapshot = own.into_iter().find(|snapshot| snapshot.is_called(asked));
    let allowed = |template: &str| key.limits.templates.is_empty() || key.limits.templates.contains(template);
    match (snapshot, templates.get(name)) {
        (Some(snapshot), _) if allowed(&snapshot.template.0) => Ok(Source::Snapshot(snapshot)),
        (None, Some(template)) if allowed(name) => Ok(Source::Template(template)),
        (None, None) => Err(TemplateError::Unknown(asked.to_owned())),
        _ => Err(TemplateError::Forbidden(asked.to_owned())),
    }
}
