//! The contenders, each behind the same trait: it runs a job in a sandbox of its default kind,
//! starts an idle sandbox, restores a clean state, and measures its disk space. A contender uses
//! only the temporary directory of the scene and the control group of its guard.

mod bubblewrap;
mod chroot;
mod docker;
mod nspawn;
mod qemu;
mod sandboxvm;

use crate::{
    execution::{self, Ended},
    guard::Guard,
    scene::Scene,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest time until a sandbox is ready, or until a command in it ends.
pub fn patience() -> Duration {
    Duration::from_secs(120) * sandboxvm_tests::cli::patience()
}

/// Memory of a virtual machine in MiB.
pub const MACHINE_MIB: u64 = 128;

/// What a sandbox should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Runs the program of a rogue, which arrives on stdin.
    Rogue,
    /// Succeeds without doing anything.
    True,
    /// Prints `ready` and keeps running.
    Idle,
}

impl Job {
    /// Returns the command for this job, if commands can be run.
    pub const fn command(self) -> &'static [&'static str] {
        match self {
            Self::Rogue => &["python3", "-S", "-E", "-"],
            Self::True => &["true"],
            Self::Idle => &["sh", "-c", "echo ready; exec sleep 86400"],
        }
    }
}

/// Damages a sandbox before a clean state is restored. Some of its files may be in use.
const DAMAGE: &str = "rm -rf /etc /usr/lib/python3; true";

/// Disk space in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// Used once, however many sandboxes exist.
    pub once: u64,
    /// Used by each sandbox in addition.
    pub each: u64,
}

/// An idle sandbox. [`Contender::end`] ends it, or the end of its process group.
#[derive(Debug)]
pub struct Idle {
    /// The first processes of the sandbox. They and all that they started are the sandbox.
    pub roots: Vec<u32>,
    child: Option<Child>,
    name: Option<String>,
}

impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            execution::end_group(child);
            let _ = child.wait();
        }
    }
}

/// The system calls of the host's kernel that an attacker who took over the monitor could make.
#[derive(Debug, Clone)]
pub struct MonitorSurface {
    /// Number of calls that the monitor's filter allows, or none if the monitor has no filter.
    pub allowed: Option<u64>,
    /// Where the number comes from.
    pub how: String,
}

/// A way to isolate programs that is compared.
pub trait Contender {
    /// Returns its name in tables.
    fn name(&self) -> &'static str;
    /// Returns its version and the command that is run, for the report.
    fn how(&self) -> String;
    /// Prepares it. Fails with the reason if it cannot run on this host.
    fn prepare(&mut self, scene: &Scene, guard: &Guard) -> Result<(), String>;
    /// Returns the command of the host that does a job in a new sandbox of the default kind.
    fn command(&mut self, job: Job, script: &str) -> Result<Command, String>;
    /// Returns whether a separate kernel is between its programs and the host's kernel.
    fn own_kernel(&self) -> bool {
        false
    }
    /// Returns a remark that belongs to the verdict on a probe.
    fn remark(&self, _probe: &str) -> Option<&'static str> {
        None
    }
    /// Returns the filter of the monitor, if there is one.
    fn monitor(&mut self) -> Option<MonitorSurface> {
        None
    }
    /// Starts a sandbox in which nothing happens, and returns when it is ready.
    fn idle(&mut self) -> Result<Idle, String> {
        let mut command = self.command(Job::Idle, "")?;
        idle_child(&mut command)
    }
    /// Ends an idle sandbox.
    fn end(&mut self, idle: Idle) {
        drop(idle);
    }
    /// Damages a sandbox with `rm -rf` and restores a clean state. Returns how long the latter
    /// took, and how it was done.
    fn clean(&mut self, scene: &Scene) -> Result<(Duration, &'static str), String>;
    /// Returns its use of disk space.
    fn disk(&mut self) -> Result<Disk, String>;

    /// Runs the program of a rogue to its end.
    fn run(&mut self, guard: &Guard, script: &str, deadline: Duration) -> Result<Ended, String> {
        let command = self.command(Job::Rogue, script)?;
        let ended = execution::run(guard.hold(&command), script, deadline);
        if ended.as_ref().is_ok_and(|ended| ended.late) {
            guard.clear();
        }
        ended
    }
}

/// Returns all contenders, in the order of the table's columns.
pub fn all() -> Vec<Box<dyn Contender>> {
    vec![
        Box::<chroot::Chroot>::default(),
        Box::<nspawn::Nspawn>::default(),
        Box::<docker::Docker>::default(),
        Box::<bubblewrap::Bubblewrap>::default(),
        Box::<qemu::Qemu>::default(),
        Box::<sandboxvm::Sandboxvm>::default(),
    ]
}

/// Starts a command that prints `ready` and keeps running.
fn idle_child(command: &mut Command) -> Result<Idle, String> {
    use std::os::unix::process::CommandExt;
    let log = tempfile::NamedTempFile::new().map_err(|error| format!("cannot make a log: {error}"))?;
    let (out, err) = (log.reopen(), log.reopen());
    let both = out.and_then(|out| err.map(|err| (out, err))).map_err(|error| format!("cannot open a log: {error}"))?;
    // stdin is empty, so that no pipe has to be kept open. A command that reads gets the end of
    // file.
    command.stdin(Stdio::null()).stdout(both.0).stderr(both.1).process_group(0);
    let child = command.spawn().map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
    let mut idle = Idle { roots: vec![child.id()], child: Some(child), name: None };
    let begin = Instant::now();
    loop {
        let said = fs::read(log.path()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        if said.lines().any(|line| line.trim() == "ready") {
            return Ok(idle);
        }
        if execution::interrupted() {
            return Err("interrupted".to_owned());
        }
        let ended = idle.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
        if ended || begin.elapsed() > patience() {
            let last = said.lines().last().unwrap_or("nothing").to_owned();
            return Err(format!("the idle sandbox did not start; its last output: {}", execution::short(&last, 240)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the first line of a program's version.
fn version(program: &str, argument: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg(argument);
    let said = execution::run(command, "", Duration::from_secs(30))?.success()?;
    Ok(execution::short(said.out.lines().next().unwrap_or_default().trim(), 80))
}

/// Returns the disk blocks below a path in bytes, as du(1) counts them.
fn size(path: &Path) -> Result<u64, String> {
    size_together(&[path.to_owned()])
}

/// Returns the disk blocks below some paths. A file with several links counts once.
fn size_together(paths: &[PathBuf]) -> Result<u64, String> {
    let mut du = Command::new("du");
    du.args(["-s", "-c", "-B1"]).args(paths);
    let said = execution::run(du, "", Duration::from_secs(120))?;
    let total = said.out.lines().last().and_then(|line| line.split_whitespace().next()?.parse().ok());
    total.ok_or_else(|| format!("du of {paths:?} prints nothing"))
}

/// Restores a clean state for contenders that use a plain directory, by copying it again.
fn clean_by_copy(scene: &Scene, root: &Path) -> Result<(Duration, &'static str), String> {
    let begin = Instant::now();
    scene.copy(root)?;
    Ok((begin.elapsed(), "the directory was removed and copied again"))
}
