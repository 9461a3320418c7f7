//! `snapshot`: a running sandbox, kept to go on from later.

use crate::{environment, failure::Failure, options::name, progress, runtime, stdio, supervision, table};
use clap::{Args, Subcommand};
use sandboxvm_manager::SnapshotManifest;
use sandboxvm_protocol::identity::SandboxName;
use std::time::SystemTime;

/// Make, list and remove snapshots of running sandboxes
#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Create(Create),
    Ls(Ls),
    Rm(Rm),
}

/// Make a snapshot of a running sandbox, memory, processes and disk; the sandbox runs on
#[derive(Debug, Args)]
struct Create {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Name to call the snapshot by: a-z, 0-9 and '-'
    #[arg(value_parser = name, allow_hyphen_values = true)]
    name: SandboxName,
}

/// List snapshots
#[derive(Debug, Args)]
struct Ls {
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print names alone
    #[arg(short, long)]
    quiet: bool,
}

/// Remove snapshots; what was made from them keeps what it needs
#[derive(Debug, Args)]
struct Rm {
    /// Names of snapshots
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

impl Snapshot {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self.action {
            Action::Create(command) => command.run(),
            Action::Ls(command) => command.run(),
            Action::Rm(command) => command.run(),
        }
    }
}

impl Create {
    fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async {
            progress::during("writing the snapshot", sandbox.snapshot(self.name.clone())).await?;
            stdio::print(&format!("{}\n", self.name))?;
            Ok(0)
        })
    }
}

impl Ls {
    fn run(self) -> Result<u8, Failure> {
        let snapshots = environment::manager()?.snapshots()?;
        let text = if self.json {
            format!("{}\n", serde_json::to_string_pretty(&snapshots)?)
        } else if self.quiet {
            snapshots.iter().map(|snapshot| format!("{}\n", called(snapshot))).collect()
        } else {
            let now = SystemTime::now();
            let heading = ["NAME", "SANDBOX", "MEMORY", "CPUS", "CREATED"];
            table::render(heading, snapshots.iter().map(|snapshot| row(snapshot, now)))
        };
        stdio::print(&text)?;
        Ok(0)
    }
}

fn called(snapshot: &SnapshotManifest) -> &str {
    snapshot.name.as_ref().map_or("-", SandboxName::as_str)
}

fn row(snapshot: &SnapshotManifest, now: SystemTime) -> [String; 5] {
    [
        called(snapshot).to_owned(),
        snapshot.sandbox.to_string(),
        format!("{} MiB", snapshot.memory_bytes.mib()),
        snapshot.vcpus.to_string(),
        super::ls::age(now.duration_since(snapshot.created_at).unwrap_or_default()),
    ]
}

impl Rm {
    fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        runtime::block_on(super::for_each(&self.snapshots, async |name| {
            manager.remove_snapshot(name)?;
            stdio::print(&format!("{name}\n"))
        }))
    }
}
