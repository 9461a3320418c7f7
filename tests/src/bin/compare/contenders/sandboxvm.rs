//! sandboxvm itself: the real CLI, with a home in the temporary directory.

use super::{Contender, DAMAGE, Disk, Idle, Job, MACHINE_MIB, MonitorSurface, size_together};
use crate::{execution, guard::Guard, scene::Scene};
use sandboxvm_tests::home::Home;
use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

/// The system calls that the VMM may make, as it was built.
const FILTER: &str = include_str!("../../../../../vmm/src/confine/syscalls.rs");

/// The contender sandboxvm.
#[derive(Debug, Default)]
pub struct Sandboxvm {
    home: Option<Home>,
    memory: String,
    /// Marks a root directory that may be destroyed.
    token: String,
}

impl Sandboxvm {
    fn home(&self) -> &Home {
        self.home.as_ref().expect("it was prepared before")
    }

    fn cli(&self, arguments: &[&str]) -> Command {
        let home = self.home();
        let mut command = Command::new(&home.artefacts().program);
        command.env_clear().env("PATH", super::super::PATH).env("SANDBOXVM_HOME", home.path());
        command.env("SANDBOXVM_BUNDLE", &home.artefacts().bundle).current_dir("/").args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        Ok(execution::run(self.cli(arguments), "", super::patience())?.success()?.out.trim().to_owned())
    }

    fn damage_and_reset(&self, id: &str) -> Result<Duration, String> {
        self.ask(&["exec", id, "--", "sh", "-c", DAMAGE])?;
        let begin = Instant::now();
        self.ask(&["reset", id])?;
        let elapsed = begin.elapsed();
        let whole = self.ask(&["exec", id, "--", "test", "-e", "/etc/passwd"]);
        whole.map_err(|error| format!("after the reset /etc/passwd was not there: {error}"))?;
        Ok(elapsed)
    }

    fn create(&self) -> Result<String, String> {
        self.ask(&["create", "-m", &self.memory])
    }
}

impl Contender for Sandboxvm {
    fn name(&self) -> &'static str {
        "sandboxvm"
    }

    fn how(&self) -> String {
        format!(
            "this checkout; sandboxvm run -m {} -i -- COMMAND (256M is the default), from the snapshot of a machine that just \
             booted, as always after the first",
            self.memory
        )
    }

    fn prepare(&mut self, scene: &Scene, _: &Guard) -> Result<(), String> {
        fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
        self.memory = format!("{MACHINE_MIB}M");
        self.token.clone_from(&scene.token);
        self.home = Some(Home::with_kvm().ok_or("SANDBOXVM_NO_KVM=1 is set")?);
        // The first sandbox boots, and leaves the snapshot from which all others are restored.
        self.ask(&["run", "-m", &self.memory, "--", "true"]).map(drop)
    }

    fn command(&mut self, job: Job, _: &str) -> Result<Command, String> {
        let mut command = self.cli(&["run", "-m", &self.memory, "-i", "--"]);
        if job == Job::Rogue {
            // The root directory is not a copy that this program made. But it belongs to this
            // sandbox and ends with it, so it may be destroyed too.
            command.args(["sh", "-c", "printf %s \"$0\" > /.compare-copy; exec \"$@\"", &self.token]);
        }
        command.args(job.command());
        Ok(command)
    }

    fn own_kernel(&self) -> bool {
        true
    }

    fn monitor(&mut self) -> Option<MonitorSurface> {
        let rules = FILTER.split("#[cfg(test)]").next().unwrap_or(FILTER);
        let calls: BTreeSet<&str> = rules
            .split("libc::SYS_")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next())
            .collect();
        let how = "calls that vmm/src/confine/syscalls.rs lets the monitor make, a few of them with certain arguments only; any \
                   other ends it"
            .to_owned();
        Some(MonitorSurface { allowed: Some(calls.len() as u64), how })
    }

    fn idle(&mut self) -> Result<Idle, String> {
        let id = self.create()?;
        let status = self.home().path().join("sandboxes").join(&id).join("status.json");
        let pid = fs::read(&status).ok().and_then(|text| {
            let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
            status["pid"].as_u64()?.try_into().ok()
        });
        let pid: u32 = pid.ok_or_else(|| format!("{} names no process", status.display()))?;
        Ok(Idle { roots: vec![pid], child: None, name: Some(id) })
    }

    fn end(&mut self, idle: Idle) {
        if let Some(id) = &idle.name
            && let Err(error) = self.ask(&["rm", "-f", id])
        {
            eprintln!("compare: sandbox {id} could not be removed: {error}");
        }
    }

    fn clean(&mut self, _: &Scene) -> Result<(Duration, &'static str), String> {
        let id = self.create()?;
        let elapsed = self.damage_and_reset(&id);
        self.ask(&["rm", "-f", &id])?;
        Ok((elapsed?, "sandboxvm reset: memory, processes and disk; afterwards /etc was there"))
    }

    fn disk(&mut self) -> Result<Disk, String> {
        let bundle = &self.home().artefacts().bundle;
        let part = |name: &str| fs::canonicalize(bundle.join(name)).unwrap_or_else(|_| bundle.join(name));
        let mut paths: Vec<PathBuf> = ["sandboxvm-vmm", "vmlinux", "base.erofs", "agent.erofs"].map(part).into();
        paths.extend(["templates", "ready", "contents"].map(|name| self.home().path().join(name)));
        // Snapshots and sandboxes have links to the image, not copies.
        let once = size_together(&paths)?;
        let id = self.create()?;
        paths.push(self.home().path().join("sandboxes").join(&id));
        let with_one = size_together(&paths);
        self.ask(&["rm", "-f", &id])?;
        Ok(Disk { once, each: with_one?.saturating_sub(once) })
    }
}
