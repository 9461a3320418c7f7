//! chroot(8), as root. To protect the host, it runs in a mount namespace in which all of the root
//! file system except the temporary directory is read-only. This namespace is not judged as a part
//! of chroot.

use super::{Contender, Disk, Job, clean_by_copy, size, version};
use crate::{guard::Guard, scene::Scene};
use std::{path::PathBuf, process::Command, time::Duration};

/// The contender chroot.
#[derive(Debug, Default)]
pub struct Chroot {
    root: PathBuf,
    temporary: PathBuf,
    version: String,
}

impl Contender for Chroot {
    fn name(&self) -> &'static str {
        "chroot"
    }

    fn how(&self) -> String {
        format!("{}; as root: mount -t proc proc ROOT/proc; chroot ROOT COMMAND", self.version)
    }

    fn prepare(&mut self, scene: &Scene, _: &Guard) -> Result<(), String> {
        self.version = version("chroot", "--version")?;
        self.temporary = scene.path().to_owned();
        self.root = scene.path().join("chroot");
        scene.copy(&self.root)
    }

    fn command(&mut self, job: Job, _: &str) -> Result<Command, String> {
        const INSIDE: &str = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro / && mount -t proc proc \"$2/proc\" \
             && root=$2 && shift 2 && exec chroot \"$root\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh"]);
        command.arg(&self.temporary).arg(&self.root).args(job.command()).env_clear().env("PATH", super::super::PATH);
        Ok(command)
    }

    fn clean(&mut self, scene: &Scene) -> Result<(Duration, &'static str), String> {
        clean_by_copy(scene, &self.root)
    }

    fn disk(&mut self) -> Result<Disk, String> {
        Ok(Disk { once: 0, each: size(&self.root)? })
    }
}
