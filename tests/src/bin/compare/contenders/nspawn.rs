//! systemd-nspawn on a directory. It is not registered, so that it needs no systemd on the host. It
//! runs in a mount namespace with a separate /run, whose files are removed with it.

use super::{Contender, Disk, Job, clean_by_copy, size, version};
use crate::{guard::Guard, scene::Scene};
use std::{path::PathBuf, process::Command, time::Duration};

/// The contender systemd-nspawn.
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
            // A directory can be used by one container at a time, so ten idle ones share it
            // read-only, which is a shared lock.
            command.arg("--read-only");
        }
        command.arg("-D").arg(&self.root).args(job.command()).env("PATH", super::super::PATH);
        self.idle += 1;
        Ok(command)
    }

    fn remark(&self, probe: &str) -> Option<&'static str> {
        match probe {
            "network" | "abstract" => Some("With --private-network it has a separate network"),
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
