//! Creates, lists and removes sandboxes.

use super::{
    arguments::{BadArgument, mib, name, within},
    network::{NetworkArguments, NetworkFailure},
};
use crate::{
    scope::{RemoveFailure, Scope, ScopeError},
    server::SandboxTools,
};
use rmcp::{
    RoleServer,
    handler::server::wrapper::{Json, Parameters},
    service::RequestContext,
    tool, tool_router,
};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{
    AtEnd, CreateError, DirectoryError, Sandbox, SandboxSpec, StartFrom, SuperviseError, SupervisionSpec, TimeToLive,
    environment_entry, over_environment_of_image,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Default time to live in seconds: removes the sandboxes of a server that was killed.
const DEFAULT_TTL: u64 = 24 * 3600;
const MAX_TTL: u64 = 30 * 24 * 3600;

/// Arguments of sandbox_create.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateArguments {
    /// Name of the sandbox: 1-63 characters from a-z, 0-9 and '-', not starting with '-'. Default: only an ID.
    name: Option<String>,
    /// Snapshot or template to start from, one of those that sandbox_list lists. Memory, CPUs and disk are then those of
    /// the snapshot.
    snapshot: Option<String>,
    /// Container image to start from, one of those that sandbox_list lists, in place of Debian 12. Its command is not
    /// started; sandbox_run without an argv needs bash in it.
    image: Option<String>,
    /// Memory in MiB (64-65536). Default: 256.
    memory_mib: Option<u64>,
    /// Number of CPUs (1-8). Default: 1.
    cpus: Option<u32>,
    /// Size of the writable disk in MiB (64-1048576). Default: 2048. It takes up space only as it is written.
    disk_mib: Option<u64>,
    /// What the sandbox reaches on the network. Default: nothing.
    network: Option<NetworkArguments>,
    /// Environment variables of every command in the sandbox.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Time in seconds after which the sandbox is removed, even if it is in use (1-2592000). Default: 86400, one day.
    ttl_seconds: Option<u64>,
}

/// A sandbox.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SandboxShown {
    /// ID of the sandbox, which every tool accepts.
    id: String,
    /// Name of the sandbox, if it has one. Every tool accepts it in place of the ID.
    name: Option<String>,
    /// State: running, paused, exited, dead or creating.
    state: String,
    /// Memory in MiB.
    memory_mib: u64,
    /// Number of CPUs.
    cpus: u8,
    /// True if this server created the sandbox and can remove it.
    made_here: bool,
}

impl SandboxShown {
    pub(super) fn of(sandbox: &Sandbox, made_here: bool) -> Result<Self, DirectoryError> {
        let record = sandbox.record();
        Ok(Self {
            id: record.id.to_string(),
            name: record.name.as_ref().map(ToString::to_string),
            state: sandbox.state()?.word().to_owned(),
            memory_mib: record.memory_bytes.mib(),
            cpus: record.vcpus.get(),
            made_here,
        })
    }
}

/// Sandboxes and snapshots.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Listed {
    /// Sandboxes that can be used.
    sandboxes: Vec<SandboxShown>,
    /// Snapshots and templates that sandboxes can start from or be reset to.
    snapshots: Vec<String>,
    /// Container images that sandboxes can start from.
    images: Vec<String>,
}

/// No arguments.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
// Some clients reject a schema without it.
#[schemars(extend("properties" = {}))]
pub(crate) struct NoArguments {}

/// Arguments of sandbox_remove.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveArguments {
    /// ID or name of the sandbox.
    sandbox: String,
}

/// A removed sandbox.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Removed {
    /// ID of the sandbox that was removed.
    removed: String,
}

/// Why such a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifecycleFailure {
    #[error(transparent)]
    Argument(#[from] BadArgument),
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error(transparent)]
    Network(#[from] NetworkFailure),
    #[error("cannot create the sandbox: {0}")]
    Create(#[from] CreateError),
    #[error("cannot start the services of the sandbox, which was removed: {0}")]
    Supervise(#[from] SuperviseError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

#[tool_router(router = lifecycle_router, vis = "pub(crate)")]
impl SandboxTools {
    /// Creates a sandbox: a small virtual machine (Debian 12, Python 3, git, root; no network unless it asks for one) that keeps its files and
    /// processes until it is removed. This takes seconds, and longer for the first sandbox of its kind on a computer.
    #[tool(annotations(
        title = "Create sandbox",
        read_only_hint = false,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn sandbox_create(
        &self,
        Parameters(arguments): Parameters<CreateArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<SandboxShown>, String> {
        self.work(context, create(&self.scope, arguments)).await
    }

    /// Lists the sandboxes that can be used with their states, and the snapshots that new ones can start from.
    #[tool(annotations(
        title = "List sandboxes",
        read_only_hint = true,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn sandbox_list(
        &self,
        Parameters(NoArguments {}): Parameters<NoArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<Listed>, String> {
        let list = async {
            let sandboxes = self.scope.sandboxes();
            let sandboxes = sandboxes.iter().map(|(sandbox, made)| SandboxShown::of(sandbox, *made));
            Ok::<_, DirectoryError>(Listed {
                sandboxes: sandboxes.collect::<Result<_, _>>()?,
                snapshots: self.scope.snapshots().iter().map(ToString::to_string).collect(),
                images: self.scope.settings().images.keys().cloned().collect(),
            })
        };
        self.work(context, list).await
    }

    /// Removes a sandbox and everything in it. Its snapshots and forks stay.
    #[tool(annotations(
        title = "Remove sandbox",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn sandbox_remove(
        &self,
        Parameters(arguments): Parameters<RemoveArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<Removed>, String> {
        let remove = async {
            let id = self.scope.remove(&arguments.sandbox).await?;
            Ok::<_, RemoveFailure>(Removed { removed: id.to_string() })
        };
        self.work(context, remove).await
    }
}

async fn create(scope: &Scope, arguments: CreateArguments) -> Result<SandboxShown, LifecycleFailure> {
    let rules = rules(scope, arguments.ttl_seconds)?;
    let spec = SandboxSpec { services: rules.clone(), ..spec(scope, &arguments)? };
    let mut room = scope.room(1)?;
    let settings = scope.settings();
    let bundle = match &arguments.image {
        Some(image) => Bundle { image: scope.image(image)?.disk.clone(), ..settings.bundle.clone() },
        None => settings.bundle.clone(),
    };
    let started = scope.manager().create(&bundle, &spec).await?;
    if let Err(error) = started.sandbox().supervise(&settings.supervisor, &rules).await {
        started.finish().await?;
        return Err(error.into());
    }
    // No await separates this from the registration, so the end of the server always removes the sandbox.
    let sandbox = started.detach();
    room.made(&sandbox);
    Ok(SandboxShown::of(&sandbox, true)?)
}

fn spec(scope: &Scope, arguments: &CreateArguments) -> Result<SandboxSpec, LifecycleFailure> {
    let env = arguments.env.iter().map(|(key, value)| environment_entry(key, value)).collect::<Result<_, _>>();
    let mut spec = SandboxSpec {
        name: arguments.name.as_deref().map(|text| name("name", text)).transpose()?,
        env: env.map_err(|error| BadArgument::new("env", error))?,
        network: arguments
            .network
            .as_ref()
            .map(|network| network.spec(&scope.settings().network, &scope.settings().secrets))
            .transpose()?
            .flatten(),
        ..SandboxSpec::default()
    };
    if let Some(image) = &arguments.image {
        if arguments.snapshot.is_some() {
            return Err(BadArgument::new("image", "leave out either image or snapshot").into());
        }
        let image = scope.image(image)?;
        spec.env = over_environment_of_image(image.env.clone(), spec.env);
        spec.image_defaults = Some(image.defaults.clone());
    }
    if let Some(snapshot) = &arguments.snapshot {
        if arguments.memory_mib.is_some() || arguments.cpus.is_some() || arguments.disk_mib.is_some() {
            let problem = "leave out memory_mib, cpus and disk_mib, which are those of the snapshot";
            return Err(BadArgument::new("snapshot", problem).into());
        }
        spec.start_from = StartFrom::Snapshot(scope.snapshot(snapshot)?);
    }
    if let Some(memory) = arguments.memory_mib {
        spec.memory = mib("memory_mib", memory)?;
    }
    if let Some(disk) = arguments.disk_mib {
        spec.disk = mib("disk_mib", disk)?;
    }
    if let Some(cpus) = arguments.cpus {
        spec.vcpus = cpus.try_into().map_err(|error| BadArgument::new("cpus", error))?;
    }
    Ok(spec)
}

/// Returns the rules of a sandbox. A sandbox that outlives the server has no time to live by default.
pub(super) fn rules(scope: &Scope, ttl: Option<u64>) -> Result<SupervisionSpec, BadArgument> {
    let ttl = match ttl {
        Some(seconds) => Some(within("ttl_seconds", seconds, 1, MAX_TTL)?),
        None if scope.settings().keep => None,
        None => Some(DEFAULT_TTL),
    };
    let ttl = ttl.map(|seconds| TimeToLive { after: Duration::from_secs(seconds), then: AtEnd::Remove });
    Ok(SupervisionSpec { ttl, ..SupervisionSpec::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::tests::scope;

    fn arguments(json: serde_json::Value) -> CreateArguments {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn arguments_become_a_spec_and_nonsense_is_refused_by_name() {
        let home = tempfile::tempdir().unwrap();
        let scope = scope(&home, 1);
        let json = serde_json::json!({"name": "a", "memory_mib": 128, "cpus": 2, "env": {"A": "1=2"}});
        let made = spec(&scope, &arguments(json)).unwrap();
        assert_eq!((made.memory.mib(), made.vcpus.get(), made.env), (128, 2, vec!["A=1=2".to_owned()]));
        let from_given = spec(&scope, &arguments(serde_json::json!({"snapshot": "given"}))).unwrap();
        assert!(matches!(from_given.start_from, StartFrom::Snapshot(name) if name.as_str() == "given"));
        for (json, word) in [
            (serde_json::json!({"memory_mib": 1}), "memory_mib"),
            (serde_json::json!({"cpus": 9}), "cpus"),
            (serde_json::json!({"disk_mib": 1}), "disk_mib"),
            (serde_json::json!({"name": "A B"}), "name"),
            (serde_json::json!({"env": {"A=B": "x"}}), "env"),
            (serde_json::json!({"network": {"reach": "public"}}), "the user permits no network"),
            (serde_json::json!({"snapshot": "others"}), "others"),
            (serde_json::json!({"snapshot": "given", "cpus": 1}), "leave out"),
            (serde_json::json!({"image": "debian:12"}), "the user does not permit image"),
            (serde_json::json!({"image": "debian:12", "snapshot": "given"}), "leave out either"),
        ] {
            let message = spec(&scope, &arguments(json)).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!(serde_json::from_value::<CreateArguments>(serde_json::json!({"memory": 1})).is_err());
    }

    #[test]
    fn every_sandbox_has_its_time() {
        let home = tempfile::tempdir().unwrap();
        let scope = scope(&home, 1);
        assert_eq!(rules(&scope, None).unwrap().ttl.unwrap().after.as_secs(), DEFAULT_TTL);
        assert_eq!(rules(&scope, Some(5)).unwrap().ttl.unwrap().then, AtEnd::Remove);
        assert!(rules(&scope, Some(0)).is_err() && rules(&scope, Some(u64::MAX)).is_err());
    }
}
