//! `snapshot`: saved states of running sandboxes, to restore from later.

use crate::{
    commands::each::for_each,
    environment,
    failure::Failure,
    options::{supervision, values::name},
    output::{age::age, json, progress, table},
    runtime, stdio,
};
use clap::{Args, Subcommand};
use sandboxvm_manager::{ListedSnapshot, SandboxName, SnapshotManifest, UnreadableSnapshot};
use std::time::SystemTime;

/// Create, list, verify and remove snapshots
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
    Verify(Verify),
}

/// Create a snapshot of a running sandbox: its memory, processes and disk; the sandbox keeps running
#[derive(Debug, Args)]
struct Create {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Name of the snapshot: 1-63 characters from a-z, 0-9 and '-', not starting with '-'
    #[arg(value_parser = name, allow_hyphen_values = true)]
    name: SandboxName,
}

/// List snapshots
#[derive(Debug, Args)]
struct Ls {
    /// Print JSON
    #[arg(long, help_heading = "Output", conflicts_with = "quiet")]
    json: bool,
    /// Print only names
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// Remove snapshots; sandboxes that were restored from them keep working
#[derive(Debug, Args)]
struct Rm {
    /// Names of snapshots
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

/// Read all files of snapshots and verify their checksums
#[derive(Debug, Args)]
struct Verify {
    /// Names of snapshots [default: all]
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

impl Snapshot {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self.action {
            Action::Create(command) => command.run(),
            Action::Ls(command) => command.run(),
            Action::Rm(command) => command.run(),
            Action::Verify(command) => command.run(),
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
        let (snapshots, unreadable) = environment::manager()?.listed_snapshots()?;
        let text = if self.json {
            json::pretty(&snapshots)?
        } else if self.quiet {
            snapshots.iter().map(|snapshot| format!("{}\n", called(&snapshot.manifest))).collect()
        } else {
            let now = SystemTime::now();
            let heading = ["NAME", "SANDBOX", "MEMORY", "CPUS", "CREATED", "STATE"];
            table::render(heading, snapshots.iter().map(|snapshot| row(snapshot, now)))
        };
        stdio::print(&text)?;
        for UnreadableSnapshot { name, error } in unreadable {
            Failure::new(format_args!("warning: cannot list snapshot {name}: {error}")).report();
        }
        if !self.json && !self.quiet {
            for ListedSnapshot { manifest, damage } in &snapshots {
                if let Some(damage) = damage {
                    Failure::new(format_args!("warning: snapshot {} is damaged: {damage}", called(manifest))).report();
                }
            }
        }
        Ok(0)
    }
}

fn called(snapshot: &SnapshotManifest) -> &str {
    snapshot.name.as_ref().map_or("-", SandboxName::as_str)
}

fn row(ListedSnapshot { manifest: snapshot, damage }: &ListedSnapshot, now: SystemTime) -> [String; 6] {
    [
        called(snapshot).to_owned(),
        snapshot.sandbox.to_string(),
        format!("{} MiB", snapshot.memory_bytes.mib()),
        snapshot.vcpus.to_string(),
        age(now.duration_since(snapshot.created_at).unwrap_or_default()),
        if damage.is_some() { "damaged" } else { "whole" }.to_owned(),
    ]
}

impl Rm {
    fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        runtime::block_on(for_each(&self.snapshots, async |name| {
            manager.remove_snapshot(name)?;
            stdio::print(&format!("{name}\n"))
        }))
    }
}

impl Verify {
    fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        let all = || Ok::<_, Failure>(manager.snapshot_names()?.iter().map(ToString::to_string).collect());
        let names = if self.snapshots.is_empty() { all()? } else { self.snapshots };
        runtime::block_on(for_each(&names, async |name| {
            manager.verify_snapshot(name)?;
            stdio::print(&format!("{name}\n"))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::{assert_golden, example_memory, example_time};
    use sandboxvm_manager::{Content, Contents, HostIdentity, HostMode, MemoryFile, Mounts, Seal, VcpuCount};

    #[test]
    fn json_is_pinned() {
        let id = |text: &str| text.to_owned().try_into().unwrap();
        let content = |path: &str, digit: &str| Content { path: path.into(), sha256: digit.repeat(64) };
        let memory = |number: u32| MemoryFile { name: format!("memory.{number}"), size: 256 << 20 };
        let first = SnapshotManifest {
            format: 1,
            id: id("aaaaaaaa"),
            name: Some(SandboxName::try_from("kept".to_owned()).unwrap()),
            created_at: example_time(),
            sandbox: id("bbbbbbbb"),
            parent: None,
            vcpus: VcpuCount::ONE,
            memory_bytes: example_memory(),
            disk_bytes: 2 << 30,
            env: vec!["LANG=C.UTF-8".into()],
            host: HostIdentity { mode: HostMode::Vmx, cpu: "c".repeat(64), boot_id: "a-b-c".into() },
            contents: Contents {
                vmm: content("/usr/lib/sandboxvm/sandboxvm-vmm", "1"),
                kernel: content("/usr/lib/sandboxvm/vmlinux", "2"),
                image: content("/usr/lib/sandboxvm/base.erofs", "3"),
                agent: content("/usr/lib/sandboxvm/agent.erofs", "4"),
            },
            memory: vec![memory(0)],
            disk: vec!["disk.0".into()],
            seals: [("disk.0".to_owned(), Seal { modified_ns: 1_700_000_000_123_456_789, blake3: "b".repeat(64) })]
                .into_iter()
                .collect(),
            network_card: false,
            image_defaults: None,
            workspace: None,
            mounts: Mounts::default(),
            read_only_root: false,
        };
        let second = SnapshotManifest {
            id: id("cccccccc"),
            name: None,
            parent: Some(first.id.clone()),
            memory: vec![memory(0), memory(1)],
            disk: vec!["disk.0".into(), "disk.1".into()],
            ..first.clone()
        };
        let damage = Some("/home/snapshots/x/memory.1 has 4096 bytes, 268435456 are expected".to_owned());
        let listed = [ListedSnapshot { manifest: first, damage: None }, ListedSnapshot { manifest: second, damage }];
        assert_golden("snapshot-ls.json", &json::pretty(&listed).unwrap());
        let cells: Vec<String> = listed.iter().map(|listed| row(listed, example_time()).join("|")).collect();
        let whole = "kept|bbbbbbbb|256 MiB|1|0 seconds ago|whole";
        assert_eq!(cells, [whole, "-|bbbbbbbb|256 MiB|1|0 seconds ago|damaged"]);
    }
}
