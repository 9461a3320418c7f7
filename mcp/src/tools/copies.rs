//! Snapshots, forks and resets.

use super::{
    arguments::{BadArgument, name, within},
    lifecycle::{SandboxShown, rules},
};
use crate::{
    scope::{Scope, ScopeError},
    server::SandboxTools,
};
use rmcp::{
    RoleServer,
    handler::server::wrapper::{Json, Parameters},
    service::RequestContext,
    tool, tool_router,
};
use sandboxvm_manager::{
    DirectoryError, ForkError, Forked, ResetDone, ResetError, SandboxSpec, SnapshotError, SuperviseError,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of copies per call.
const MAX_COPIES: u64 = 16;

/// Arguments of sandbox_snapshot.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotArguments {
    /// ID or name of the sandbox.
    sandbox: String,
    /// Name of the snapshot: 1-63 characters from a-z, 0-9 and '-', not starting with '-'.
    name: String,
}

/// A new snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SnapshotShown {
    /// Its name, for sandbox_create and sandbox_reset.
    snapshot: String,
}

/// Arguments of sandbox_fork.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForkArguments {
    /// ID or name of the sandbox.
    sandbox: String,
    /// Number of copies (1-16). Default: 1.
    count: Option<u64>,
}

/// New copies.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ForksShown {
    /// The copies. All of them are running.
    copies: Vec<SandboxShown>,
}

/// Arguments of sandbox_reset.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResetArguments {
    /// ID or name of the sandbox.
    sandbox: String,
    /// Snapshot to reset to, one of those that sandbox_list lists. Default: the state in which the sandbox started.
    snapshot: Option<String>,
}

/// A sandbox that was reset.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ResetShown {
    /// ID of the sandbox.
    reset: String,
    /// True if the machine was reset in place, false if it was replaced.
    in_place: bool,
}

/// Why such a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyFailure {
    #[error(transparent)]
    Argument(#[from] BadArgument),
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("cannot create the snapshot: {0}")]
    Snapshot(#[from] SnapshotError),
    #[error("cannot fork the sandbox: {0}")]
    Fork(#[from] ForkError),
    #[error("cannot set the time to live of the copies, which were removed: {0}")]
    Supervise(#[from] SuperviseError),
    #[error("cannot reset the sandbox: {0}")]
    Reset(#[from] ResetError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

#[tool_router(router = copies_router, vis = "pub(crate)")]
impl SandboxTools {
    /// Saves the memory, processes and files of a running sandbox as a snapshot with a name. The sandbox keeps running.
    #[tool(annotations(
        title = "Snapshot sandbox",
        read_only_hint = false,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn sandbox_snapshot(
        &self,
        Parameters(arguments): Parameters<SnapshotArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<SnapshotShown>, String> {
        self.work(context, snapshot(&self.scope, arguments)).await
    }

    /// Creates running copies of a running sandbox, each with its memory, processes and files as they are now. The copies
    /// are independent of the sandbox and of each other.
    #[tool(annotations(
        title = "Fork sandbox",
        read_only_hint = false,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn sandbox_fork(
        &self,
        Parameters(arguments): Parameters<ForkArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<ForksShown>, String> {
        self.work(context, fork(&self.scope, arguments)).await
    }

    /// Resets a sandbox to the state in which it started, or to a snapshot. All files and processes since then are lost.
    #[tool(annotations(
        title = "Reset sandbox",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn sandbox_reset(
        &self,
        Parameters(arguments): Parameters<ResetArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<ResetShown>, String> {
        self.work(context, reset(&self.scope, arguments)).await
    }
}

async fn snapshot(scope: &Scope, arguments: SnapshotArguments) -> Result<SnapshotShown, CopyFailure> {
    let snapshot = name("name", &arguments.name)?;
    let sandbox = scope.find(&arguments.sandbox)?;
    let room = scope.room_for_snapshot()?;
    sandbox.snapshot(snapshot.clone()).await?;
    room.made(snapshot.clone());
    Ok(SnapshotShown { snapshot: snapshot.to_string() })
}

async fn fork(scope: &Scope, arguments: ForkArguments) -> Result<ForksShown, CopyFailure> {
    let count = within("count", arguments.count.unwrap_or(1), 1, MAX_COPIES)?;
    let sandbox = scope.find(&arguments.sandbox)?;
    // MAX_COPIES fits both.
    let mut room = scope.room(count as usize)?;
    let rules = rules(scope, None)?;
    let Forked { copies, .. } = sandbox.fork(count as u32).await?;
    // No await separates this from the fork, so the end of the server always removes the copies.
    copies.iter().for_each(|copy| room.made(copy));
    for copy in &copies {
        if let Err(error) = copy.supervise(&scope.settings().supervisor, &rules).await {
            for copy in &copies {
                // The end of the server removes what stays.
                let _ = scope.remove(copy.id().as_str()).await;
            }
            return Err(error.into());
        }
    }
    let copies = copies.iter().map(|copy| SandboxShown::of(copy, true)).collect::<Result<_, _>>()?;
    Ok(ForksShown { copies })
}

async fn reset(scope: &Scope, arguments: ResetArguments) -> Result<ResetShown, CopyFailure> {
    let sandbox = scope.find(&arguments.sandbox)?;
    let snapshot = arguments.snapshot.as_deref().map(|name| scope.snapshot(name)).transpose()?;
    let within = SandboxSpec::default().boot_timeout;
    let is_running = || {
        // As before a call of any tool: what fails has no effect on the reset.
        let _ = sandbox.ensure_supervised(&scope.settings().supervisor);
    };
    let done = sandbox.reset(&scope.settings().bundle, snapshot.as_ref(), within, is_running).await?;
    Ok(ResetShown { reset: sandbox.id().to_string(), in_place: matches!(done, ResetDone::InPlace(_)) })
}
