//! `volume`: named volumes, which outlive the sandboxes that have them.

use crate::{
    commands::each::for_each,
    environment,
    failure::Failure,
    options::values::{disk, volume_name},
    output::{age, json, size, table},
    runtime, stdio,
};
use clap::{Args, Subcommand};
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{Manager, Volume, VolumeName, VolumeUser};
use serde::Serialize;
use std::time::SystemTime;

/// Create, list, inspect and remove volumes
#[derive(Debug, Args)]
pub(crate) struct VolumeCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Create(Create),
    Ls(Ls),
    Inspect(Inspect),
    Rm(Rm),
    Prune(Prune),
}

/// Create an empty volume
#[derive(Debug, Args)]
struct Create {
    /// Name of the volume
    #[arg(value_name = "VOLUME", value_parser = volume_name)]
    name: VolumeName,
    /// Size of the volume (64M-1T); it takes up space on the host only as it is written [default: 10G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = disk)]
    size: Option<DiskSize>,
}

/// List volumes
#[derive(Debug, Args)]
struct Ls {
    /// Print JSON
    #[arg(long, help_heading = "Output", conflicts_with = "quiet")]
    json: bool,
    /// Print only names
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// Show all details of volumes as JSON
#[derive(Debug, Args)]
struct Inspect {
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME", value_parser = volume_name)]
    volumes: Vec<VolumeName>,
}

/// Remove volumes with their content, unless a sandbox uses them
#[derive(Debug, Args)]
struct Rm {
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

/// Delete what interrupted commands left, and with --all every volume that no sandbox uses
#[derive(Debug, Args)]
struct Prune {
    /// Also remove all volumes that no sandbox uses, with their content
    #[arg(short, long)]
    all: bool,
}

/// A volume in JSON.
#[derive(Debug, Serialize)]
struct Listed {
    name: VolumeName,
    size_bytes: u64,
    allocated_bytes: u64,
    created_at: Option<String>,
    sandboxes: Vec<VolumeUser>,
}

impl VolumeCommand {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        match self.action {
            Action::Create(command) => command.run(&manager),
            Action::Ls(command) => command.run(&manager),
            Action::Inspect(command) => command.run(&manager),
            Action::Rm(command) => command.run(&manager),
            Action::Prune(command) => command.run(&manager),
        }
    }
}

impl Create {
    fn run(self, manager: &Manager) -> Result<u8, Failure> {
        manager.create_volume(&self.name, self.size.unwrap_or_else(Manager::default_volume_size))?;
        stdio::print(&format!("{}\n", self.name))?;
        Ok(0)
    }
}

impl Ls {
    fn run(self, manager: &Manager) -> Result<u8, Failure> {
        let volumes = manager.volumes()?;
        let text = if self.json {
            json::pretty(&volumes.into_iter().map(listed).collect::<Vec<_>>())?
        } else if self.quiet {
            volumes.iter().map(|volume| format!("{}\n", volume.name)).collect()
        } else {
            let now = SystemTime::now();
            let heading = ["NAME", "SIZE", "ON HOST", "CREATED", "SANDBOXES"];
            table::render(heading, volumes.iter().map(|volume| row(volume, now)))
        };
        stdio::print(&text)?;
        Ok(0)
    }
}

impl Inspect {
    fn run(self, manager: &Manager) -> Result<u8, Failure> {
        let volumes = self.volumes.iter().map(|name| manager.volume(name).map(listed));
        stdio::print(&json::pretty(&volumes.collect::<Result<Vec<_>, _>>()?)?)?;
        Ok(0)
    }
}

impl Rm {
    fn run(self, manager: &Manager) -> Result<u8, Failure> {
        runtime::block_on(for_each(&self.volumes, async |name| {
            manager.remove_volume(&VolumeName::try_from(name.to_owned())?)?;
            stdio::print(&format!("{name}\n"))
        }))
    }
}

impl Prune {
    fn run(self, manager: &Manager) -> Result<u8, Failure> {
        let remains = manager.sweep()?.remains;
        let removed = if self.all { manager.prune_volumes()? } else { Vec::new() };
        let mut text: String = removed.iter().map(|volume| format!("{}\n", volume.name)).collect();
        let bytes = removed.iter().map(|volume| volume.allocated).sum();
        text.push_str(&format!(
            "removed {} volumes, {}, and {remains} incomplete files and directories\n",
            removed.len(),
            size::of(bytes)
        ));
        stdio::print(&text)?;
        Ok(0)
    }
}

fn listed(volume: Volume) -> Listed {
    let Volume { name, size, allocated, created_at, users } = volume;
    let created_at = created_at.map(|time| humantime::format_rfc3339_seconds(time).to_string());
    Listed { name, size_bytes: size, allocated_bytes: allocated, created_at, sandboxes: users }
}

fn row(volume: &Volume, now: SystemTime) -> [String; 5] {
    let age = |time| age::age(now.duration_since(time).unwrap_or_default());
    let users: Vec<String> = volume.users.iter().map(VolumeUser::label).collect();
    [
        volume.name.to_string(),
        size::of(volume.size),
        size::of(volume.allocated),
        volume.created_at.map_or_else(|| "-".to_owned(), age),
        if users.is_empty() { "-".to_owned() } else { users.join(", ") },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::{assert_golden, example_time};

    #[test]
    fn json_and_table_are_pinned() {
        let id = |text: &str| text.to_owned().try_into().unwrap();
        let users = vec![
            VolumeUser {
                id: id("aaaaaaaa"),
                name: Some("demo".to_owned().try_into().unwrap()),
                read_only: false,
                is_live: true,
            },
            VolumeUser { id: id("bbbbbbbb"), name: None, read_only: true, is_live: false },
        ];
        let name = |text: &str| VolumeName::try_from(text.to_owned()).unwrap();
        let used =
            Volume { name: name("cache"), size: 10 << 30, allocated: 3 << 20, created_at: Some(example_time()), users };
        let unused = Volume { name: name("empty"), created_at: None, users: vec![], ..used.clone() };
        let rows: Vec<String> = [&used, &unused].map(|volume| row(volume, example_time()).join("|")).to_vec();
        assert_eq!(rows, ["cache|10.0 GiB|3.0 MiB|0 seconds ago|demo, bbbbbbbb", "empty|10.0 GiB|3.0 MiB|-|-"]);
        assert_golden("volume-ls.json", &json::pretty(&vec![listed(used), listed(unused)]).unwrap());
    }
}
