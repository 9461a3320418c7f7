//! systemd-nspawn on a directory. Unregistered, so that it needs no systemd on the host; in a mount namespace whose /run
//! is its own, so that what it keeps there goes away with it.

use super::{Contender, Disk, Job, clean_by_copy, size, version};
use crate::{guard::Guard, scene::Scene};
use std::{path::PathBuf, process::Command, time::Duration};

/// See the module.
#[derive(Debug, Default)]
pub struct Nspawn {
    root: PathBuf,
    idle: usize,
    version: String,
}

impl Contender for Nspawn {
    fn name(&self) -> &'static str {
        "systemd-nspawn"
    }

    fn how(&self) -> String {
        format!(
            "{}; systemd-nspawn --quiet --register=no --keep-unit --pipe -D ROOT COMMAND (registered, its unit would hold it to \
             16384 tasks; --private-network and --volatile=overlay are options)",
            self.version
        )
    }

    fn prepare(&mut self, scene: &Scene, _: &Guard) -> Result<(), String> {
        self.version = version("systemd-nspawn", "--version")?;
        self.root = scene.path().join("nspawn");
        scene.copy(&self.root)
    }

    fn command(&mut self, job: Job, _: &str) -> Result<Command, String> {
        const INSIDE: &str = "mount -t tmpfs tmpfs /run && exec systemd-nspawn \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh", "--quiet", "--register=no"]);
        command.args(["--keep-unit", "--pipe"]).arg(format!("--machine=compare{}", self.idle));
        if matches!(job, Job::Idle) {
            // One directory is one container at a time: the tenth of them is another, and read-only is a shared lock.
            command.arg("--read-only");
        }
        command.arg("-D").arg(&self.root).args(job.command()).env("PATH", super::super::PATH);
        self.idle += 1;
        Ok(command)
    }

    fn remark(&self, probe: &str) -> Option<&'static str> {
        match probe {
            "network" | "abstract" => Some("With --private-network it has a network of its own"),
            "found" => Some("With --volatile=overlay or --ephemeral each run begins clean"),
            _ => None,
        }
    }

    fn clean(&mut self, scene: &Scene) -> Result<(Duration, &'static str), String> {
        clean_by_copy(scene, &self.root)
    }

    fn disk(&mut self) -> Result<Disk, String> {
        Ok(Disk { once: 0, each: size(&self.root)? })
    }
}
