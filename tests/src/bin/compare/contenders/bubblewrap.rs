//! bubblewrap is a tool without a default policy. So it is run as its manual proposes: all
//! namespaces, a separate root.

use super::{Contender, Disk, Job, clean_by_copy, size, version};
use crate::{guard::Guard, scene::Scene};
use std::{path::PathBuf, process::Command, time::Duration};

/// The contender bubblewrap.
#[derive(Debug, Default)]
pub struct Bubblewrap {
    root: PathBuf,
    version: String,
}

impl Contender for Bubblewrap {
    fn name(&self) -> &'static str {
        "bubblewrap"
    }

    fn how(&self) -> String {
        format!(
            "{}; as root: bwrap --unshare-all --die-with-parent --bind ROOT / --dev /dev --proc /proc COMMAND (without \
             --unshare-all only the mounts would be separate)",
            self.version
        )
    }

    fn prepare(&mut self, scene: &Scene, _: &Guard) -> Result<(), String> {
        self.version = version("bwrap", "--version")?;
        self.root = scene.path().join("bubblewrap");
        scene.copy(&self.root)
    }

    fn command(&mut self, job: Job, _: &str) -> Result<Command, String> {
        let mut command = Command::new("bwrap");
        command.args(["--unshare-all", "--die-with-parent", "--bind"]).arg(&self.root);
        command.args(["/", "--dev", "/dev", "--proc", "/proc", "--chdir", "/", "--"]).args(job.command());
        command.env_clear().env("PATH", super::super::PATH);
        Ok(command)
    }

    fn remark(&self, probe: &str) -> Option<&'static str> {
        match probe {
            "found" => Some("With --ro-bind and --tmpfs each run begins clean"),
            "surface" => Some("A filter can be handed in with --seccomp"),
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
