//! The engine's machines as sandboxes of a home, and its images as those of the home.
//!
//! ```text
//! base image ── bootable ──> sandbox ── exec, files ──> disk changes ──> layer ──> image
//!                              │ snapshot build-<key>  <── restore, a later build
//! build/layers/<key>.json    the layer of a state, so that a cached build starts no sandbox
//! build/layers/<key>.step.json   the layer of one step that was executed without a sandbox
//! build/caches/<hash>.tar    the content of cache mounts
//! ```
//! Each machine is a sandbox that ends with the process of the build. The network is the caller's
//! choice. May not read an archive that a guest sent: the engine does, with the rules for hostile
//! ones.

mod guest_program;
mod kept;
mod machine;
mod ready;

pub use machine::SandboxMachine;
pub use ready::READY_DEFAULT;

use crate::{
    engine::{BaseImage, Done, Downloaded, MachineError, Machines, NewImage, StepLayer},
    key::{Key, KeyBuilder},
};
use kept::{Kept, KeptLayer, Record};
use sandboxvm_archive::Timestamp;
use sandboxvm_manager::{
    Bundle, CommitSpec, DiskSize, ImageStore, Manager, MemorySize, NetworkSpec, SandboxName, SandboxSpec, StartFrom,
    SupervisionSpec, SupervisorProgram, VcpuCount, WantedLimits,
};
use sandboxvm_oci::{
    Addition, Composition, Images,
    config::ImageConfig,
    manifest::{Compression, Layer},
    registry::{RegistryOptions, download},
};
use std::{
    fmt,
    fs::File,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Name of the snapshots that keep the states of image builds, before the key.
pub const IMAGE_STATES: &str = "build-";
/// Number of digits in the name of a state.
const DIGITS: usize = 40;

/// Returns true for names that a build gives to states. Another snapshot is the user's, and builds
/// neither restore nor remove it.
fn is_state(name: &str, prefix: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.strip_prefix(prefix).is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(is_digit))
}

/// A function that brings the image of a reference into the store of the home, with the credentials
/// and the progress of the caller.
pub type Pull = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Done<()>> + Send>> + Send + Sync>;

/// How the files of `ADD URL` are downloaded.
#[derive(Debug, Clone)]
pub struct Downloads {
    /// Authorities, times, and which addresses may be reached.
    pub options: RegistryOptions,
    /// Whether a URL may be one without TLS.
    pub may_be_plain: bool,
}

/// What machines are like, and what they may reach.
pub struct MachineOptions {
    /// Number of vCPUs.
    pub vcpus: VcpuCount,
    /// Size of the guest memory.
    pub memory: MemorySize,
    /// Size of the writable disk.
    pub disk: DiskSize,
    /// What `RUN` may reach. `None`: machines have no network card.
    pub network: Option<NetworkSpec>,
    /// The program that serves the network. Without one, `network` is an error.
    pub supervisor: Option<SupervisorProgram>,
    /// What the names of kept states begin with. 1-22 characters that a name can begin with.
    pub states: String,
    /// Maximum number of kept states whose names begin so. The oldest ones are removed.
    pub max_states: usize,
    /// Limits of the machines.
    pub limits: WantedLimits,
    /// What machines start from that do not restore a kept state. `None`: from their image.
    pub start_from: Option<StartFrom>,
    /// Maximum size in bytes of the layer of an image, not compressed.
    pub max_layer: u64,
    /// Pulls an absent image. `None`: absent images are errors.
    pub pull: Option<Pull>,
    /// How files are downloaded. `None`: a download is an error.
    pub downloads: Option<Downloads>,
}

impl fmt::Debug for MachineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpus, memory, disk, network, max_states, max_layer, .. } = self;
        let mut shown = f.debug_struct("MachineOptions");
        shown.field("vcpus", vcpus).field("memory", memory).field("disk", disk).field("network", network);
        shown.field("max_states", max_states).field("max_layer", max_layer).finish_non_exhaustive()
    }
}

impl Default for MachineOptions {
    /// Returns one vCPU, 1 GiB of memory, a disk of 4 GiB, no network, 32 states, layers of at most
    /// 16 GiB, and no pulls.
    fn default() -> Self {
        let gib = |count: u64| count << 30;
        Self {
            vcpus: VcpuCount::ONE,
            // The bounds are constants, and a test makes this value.
            memory: MemorySize::try_from(gib(1)).expect("1 GiB lies within the bounds"),
            disk: DiskSize::try_from(gib(4)).unwrap_or(DiskSize::DEFAULT),
            network: None,
            supervisor: None,
            states: IMAGE_STATES.into(),
            max_states: 32,
            limits: WantedLimits::default(),
            start_from: None,
            max_layer: gib(16),
            pull: None,
            downloads: None,
        }
    }
}

impl MachineOptions {
    /// Returns the name of the snapshot of a state. The state of another kind of machine is another
    /// one.
    fn state_name(&self, key: Key) -> Done<SandboxName> {
        let mut kind = KeyBuilder::new("machine");
        kind.key(key).part(format!("{} {} {}", self.vcpus, self.memory.bytes(), self.disk.bytes()).as_bytes());
        kind.part(&reach(self.network.as_ref()));
        let name: String = self.states.chars().chain(kind.finish().to_string().chars().take(DIGITS)).collect();
        SandboxName::try_from(name).map_err(MachineError::new)
    }
}

/// Returns what a network permits, as bytes for a key. Secrets, the proxy and limits are not part of it.
fn reach(network: Option<&NetworkSpec>) -> Vec<u8> {
    let Some(NetworkSpec { reach, precedence, allow, deny, dns, hosts, .. }) = network else {
        return Vec::new();
    };
    let mut permits = NetworkSpec { reach: *reach, precedence: *precedence, ..NetworkSpec::default() };
    (permits.allow, permits.deny, permits.dns, permits.hosts) =
        (allow.clone(), deny.clone(), dns.clone(), hosts.clone());
    format!("{permits:?}").into_bytes()
}

/// Sandboxes of a home, for builds.
#[derive(Debug)]
pub struct SandboxMachines {
    manager: Manager,
    bundle: Bundle,
    images: ImageStore,
    kept: Kept,
    options: Arc<MachineOptions>,
}

impl SandboxMachines {
    /// Opens what earlier builds kept in the home of `manager`.
    ///
    /// # Errors
    /// Fails if directories cannot be created.
    pub fn open(
        manager: Manager,
        bundle: Bundle,
        images: ImageStore,
        options: MachineOptions,
    ) -> Result<Self, MachineError> {
        let kept = Kept::open(manager.root().join("build")).map_err(MachineError::new)?;
        Ok(Self { manager, bundle, images, kept, options: Arc::new(options) })
    }

    fn is_stored(&self, layer: &KeptLayer) -> bool {
        layer.digest.parse().is_ok_and(|digest| self.images.images().store().open_blob(digest).is_ok())
    }

    async fn launch(&self, bundle: &Bundle, spec: SandboxSpec) -> Done<SandboxMachine> {
        let spec = SandboxSpec {
            vcpus: self.options.vcpus,
            memory: self.options.memory,
            disk: self.options.disk,
            network: self.options.network.clone(),
            limits: self.options.limits,
            ephemeral: true,
            ..spec
        };
        let started = self.manager.create(bundle, &spec).await.map_err(MachineError::new)?;
        if self.options.network.is_some() {
            let supervisor = self.options.supervisor.as_ref();
            let supervisor = supervisor.ok_or_else(|| MachineError::new("a network needs a supervisor program"))?;
            let supervised = started.sandbox().supervise(supervisor, &SupervisionSpec::default()).await;
            supervised.map_err(MachineError::new)?;
        }
        Ok(SandboxMachine::new(started, self.manager.clone(), self.options.clone()))
    }
}

/// Returns the time in seconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Returns a kept layer as a part of a new image.
fn stored<R>(kept: &KeptLayer, created_by: String) -> Option<Addition<R>> {
    let layer = Layer { digest: kept.digest.parse().ok()?, size: kept.size, compression: Compression::Gzip };
    Some(Addition::Stored { layer, diff_id: kept.diff_id.parse().ok()?, created_by })
}

/// Stores an image with the layers of steps above another one. Blocks the thread.
fn extend(images: &Images, kept: &Kept, base: BaseImage, layers: Vec<StepLayer>) -> Done<BaseImage> {
    // The time is always the same, and so is the image of the same layers.
    let created = CommitSpec { created: Some(0), ..CommitSpec::default() }.created_text();
    let composition = Composition { base: Some(&base.digest), config: base.config.clone(), created, tag: None };
    let keys: Vec<_> = layers.iter().map(|layer| (layer.key, layer.archive.is_some())).collect();
    let additions = layers.into_iter().map(|StepLayer { key, created_by, archive }| match archive {
        Some(archive) => Ok(Addition::Layer { archive, created_by }),
        None => {
            let known = kept.layer(Record::Step, key).and_then(|kept| stored(&kept, created_by));
            known.ok_or_else(|| MachineError::new("the layer of a step is gone"))
        }
    });
    let additions = additions.collect::<Done<Vec<_>>>()?;
    let digest = images.compose(&composition, additions).map_err(MachineError::new)?;
    let details = images.inspect(&digest.to_string()).map_err(MachineError::new)?;
    let new = details.layers.len().saturating_sub(keys.len());
    let made = details.layers[new..].iter().zip(&details.configuration.diff_ids[new..]);
    for ((key, is_new), (layer, diff_id)) in keys.into_iter().zip(made) {
        if is_new {
            let (digest, diff_id) = (layer.digest.to_string(), diff_id.to_string());
            let layer = KeptLayer { digest, size: layer.size, diff_id, created: now(), leading: 0 };
            kept.keep_layer(Record::Step, key, &layer);
        }
    }
    Ok(BaseImage { digest: digest.to_string(), config: base.config })
}

impl Machines for SandboxMachines {
    type Machine = SandboxMachine;

    async fn image(&self, reference: Option<&str>) -> Done<BaseImage> {
        let images = self.images.images();
        let Some(reference) = reference else {
            let created = CommitSpec { created: Some(0), ..CommitSpec::default() }.created_text();
            let empty = Composition { base: None, config: ImageConfig::default(), created, tag: None };
            let none: [Addition<io::Empty>; 0] = [];
            let digest = images.compose(&empty, none).map_err(MachineError::new)?;
            return Ok(BaseImage { digest: digest.to_string(), config: ImageConfig::default() });
        };
        let details = match (images.inspect(reference), &self.options.pull) {
            (Err(sandboxvm_oci::Error::NotFound(_)), Some(pull)) => {
                pull(reference.to_owned()).await?;
                images.inspect(reference)
            }
            (other, _) => other,
        };
        let details = details.map_err(MachineError::new)?;
        Ok(BaseImage { digest: details.manifest.to_string(), config: details.configuration.image })
    }

    fn surroundings(&self) -> Vec<u8> {
        reach(self.options.network.as_ref())
    }

    async fn download(&self, url: &str, maximum: u64, mut output: File) -> Done<Downloaded> {
        let no_network = || MachineError::new("the build has no network");
        let downloads = self.options.downloads.as_ref().ok_or_else(no_network)?;
        let file = download(url, downloads.may_be_plain, &downloads.options, maximum, &mut output)
            .await
            .map_err(MachineError::new)?;
        let since = file.modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
        let modified = Timestamp { seconds, nanoseconds: 0 };
        Ok(Downloaded { size: file.size, digest: file.digest, modified })
    }

    async fn start(&self, image: &BaseImage) -> Done<SandboxMachine> {
        if let Some(start_from) = &self.options.start_from {
            let spec = SandboxSpec { start_from: start_from.clone(), ..SandboxSpec::default() };
            return self.launch(&self.bundle, spec).await;
        }
        let bootable = self.images.bootable(&image.digest, |_| ()).await.map_err(MachineError::new)?;
        let bundle = Bundle { image: bootable.disk, ..self.bundle.clone() };
        let spec = SandboxSpec { image_defaults: Some(bootable.defaults), ..SandboxSpec::default() };
        self.launch(&bundle, spec).await
    }

    fn has(&self, key: Key) -> bool {
        self.options.state_name(key).is_ok_and(|name| self.manager.has_snapshot(&name))
    }

    async fn restore(&self, key: Key) -> Done<SandboxMachine> {
        let start_from = StartFrom::Snapshot(self.options.state_name(key)?);
        self.launch(&self.bundle, SandboxSpec { start_from, ..SandboxSpec::default() }).await
    }

    fn known_layer(&self, key: Key) -> Option<usize> {
        let kept = self.kept.layer(Record::State, key)?;
        self.is_stored(&kept).then_some(kept.leading)
    }

    fn has_step_layer(&self, key: Key) -> bool {
        self.kept.layer(Record::Step, key).is_some_and(|kept| self.is_stored(&kept))
    }

    fn leading(&self, machine: &SandboxMachine, base: &BaseImage) -> Done<usize> {
        let layers = |image: &str| self.images.images().inspect(image).map(|details| details.layers.len());
        match machine.sandbox().image_digest() {
            Some(image) if image != base.digest => {
                let layers =
                    (layers(image).map_err(MachineError::new)?, layers(&base.digest).map_err(MachineError::new)?);
                Ok(layers.0.saturating_sub(layers.1))
            }
            _ => Ok(0),
        }
    }

    async fn names(&self, image: &BaseImage, output: File) -> Done<()> {
        self.images.list_names(&image.digest, output).await.map_err(MachineError::new)
    }

    async fn extend(&self, base: &BaseImage, layers: Vec<StepLayer>) -> Done<BaseImage> {
        let (images, kept, base) = (self.images.images().clone(), self.kept.clone(), base.clone());
        let extending = tokio::task::spawn_blocking(move || extend(&images, &kept, base, layers));
        extending.await.map_err(MachineError::new)?
    }

    async fn publish(&self, image: &NewImage, machine: Option<&mut SandboxMachine>) -> Done<String> {
        let images = self.images.images();
        let known = image.key.and_then(|key| self.kept.layer(Record::State, key)).filter(|_| machine.is_none());
        let last_step = image.last_step.and_then(|key| self.kept.layer(Record::Step, key));
        let kept = known.as_ref().or(last_step.as_ref()).map(|kept| kept.created);
        let created = image.created.or(kept).unwrap_or_else(now);
        let spec = CommitSpec {
            tag: image.tag.clone(),
            config: Some(image.config.clone()),
            settings: image.history.clone(),
            created_by: "sandboxvm build".into(),
            created: Some(created),
            max_bytes: self.options.max_layer,
        };
        if let Some(machine) = machine {
            let leading = self.leading(machine, &image.base)?;
            let digest = self.images.commit(machine.sandbox(), &spec).await.map_err(MachineError::new)?;
            let details = images.inspect(&digest.to_string()).map_err(MachineError::new)?;
            if let (Some(key), Some(layer), Some(diff_id)) =
                (image.key, details.layers.last(), details.configuration.diff_ids.last())
            {
                let kept = KeptLayer {
                    digest: layer.digest.to_string(),
                    size: layer.size,
                    diff_id: diff_id.to_string(),
                    created,
                    leading,
                };
                self.kept.keep_layer(Record::State, key, &kept);
            }
            return Ok(digest.to_string());
        }
        let created = spec.created_text();
        let composition = Composition {
            base: Some(&image.base.digest),
            config: image.config.clone(),
            created,
            tag: spec.tag.as_deref(),
        };
        let settings = spec.settings.into_iter().map(|created_by| Addition::Setting { created_by });
        let layer = match image.key {
            None => None,
            Some(_) => {
                let kept = known.and_then(|kept| stored::<io::Empty>(&kept, spec.created_by));
                Some(kept.ok_or_else(|| MachineError::new("the layer of the last build is gone"))?)
            }
        };
        let digest = images.compose(&composition, settings.chain(layer)).map_err(MachineError::new)?;
        Ok(digest.to_string())
    }

    fn scratch(&self) -> io::Result<File> {
        self.kept.scratch()
    }

    fn cache(&self, id: &str) -> Option<File> {
        self.kept.cache(id)
    }

    async fn keep_cache(&self, id: &str, archive: File) -> bool {
        let (kept, id) = (self.kept.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || kept.keep_cache(&id, archive)).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_states_are_taken_for_states() {
        let name = MachineOptions::default().state_name(KeyBuilder::new("test").finish()).unwrap();
        assert!(is_state(name.as_str(), IMAGE_STATES), "{name}");
        let digits = "0123456789abcdef0123456789abcdef01234567";
        assert!(is_state(&format!("build-{digits}"), "build-"));
        for other in ["build-env", "build-", digits, &format!("build-{digits}0"), &format!("build-{}F", &digits[1..])] {
            assert!(!is_state(other, "build-"), "{other}");
        }
    }

    #[test]
    fn keys_depend_on_what_the_network_permits() {
        let rule = NetworkSpec { allow: vec!["example.org".parse().unwrap()], ..NetworkSpec::default() };
        let resolver = NetworkSpec { dns: vec!["192.0.2.1".parse().unwrap()], ..NetworkSpec::default() };
        let all = [None, Some(NetworkSpec::default()), Some(rule), Some(resolver)];
        let keys: std::collections::BTreeSet<_> = all.iter().map(|network| reach(network.as_ref())).collect();
        assert_eq!(keys.len(), all.len());
    }
}
