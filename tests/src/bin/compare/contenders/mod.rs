//! What is compared, each behind the same trait: starting a job in a sandbox of its default kind, an idle sandbox, a clean
//! state, and what it takes of the disk. A contender touches the scene's temporary directory and its guard's control group,
//! and nothing else.

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

/// Longest that a sandbox may take to be there, or a command on it to its end.
pub fn patience() -> Duration {
    Duration::from_secs(120) * sandboxvm_tests::cli::patience()
}

/// The memory that a virtual machine gets.
pub const MACHINE_MIB: u64 = 128;

/// What is to be done in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// The program of a rogue, which comes on standard input.
    Rogue,
    /// Nothing, successfully.
    True,
    /// Say `ready` and stay.
    Idle,
}

impl Job {
    /// The command that does it, where commands can be run.
    pub const fn command(self) -> &'static [&'static str] {
        match self {
            Self::Rogue => &["python3", "-S", "-E", "-"],
            Self::True => &["true"],
            Self::Idle => &["sh", "-c", "echo ready; exec sleep 86400"],
        }
    }
}

/// What is done to a sandbox before its way back is measured; some of it may be busy.
const DAMAGE: &str = "rm -rf /etc /usr/lib/python3; true";

/// Bytes on disk.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// Once, however many sandboxes there are.
    pub once: u64,
    /// For each sandbox besides.
    pub each: u64,
}

/// An idle sandbox, ended by [`Contender::end`] or with its processes' group.
#[derive(Debug)]
pub struct Idle {
    /// The processes it began with: all of them and all they started are the sandbox.
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

/// What system calls of the host's kernel a sandbox's escape would have to do with.
#[derive(Debug, Clone)]
pub struct MonitorSurface {
    /// How many the monitor's own filter lets through; none when it has no filter.
    pub allowed: Option<u64>,
    /// Where the number is from.
    pub how: String,
}

/// See the module.
pub trait Contender {
    /// What tables call it.
    fn name(&self) -> &'static str;
    /// Its version and what is run, for people.
    fn how(&self) -> String;
    /// Makes it ready, or says why it cannot run here.
    fn prepare(&mut self, scene: &Scene, guard: &Guard) -> Result<(), String>;
    /// The host's command that does a job in a new sandbox of the default kind.
    fn command(&mut self, job: Job, script: &str) -> Result<Command, String>;
    /// True where a kernel of its own is between its programs and the host's.
    fn own_kernel(&self) -> bool {
        false
    }
    /// What must be said with the verdict on a probe.
    fn remark(&self, _probe: &str) -> Option<&'static str> {
        None
    }
    /// Filter of the monitor, where there is one.
    fn monitor(&mut self) -> Option<MonitorSurface> {
        None
    }
    /// A sandbox in which nothing happens, once it is there.
    fn idle(&mut self) -> Result<Idle, String> {
        let mut command = self.command(Job::Idle, "")?;
        idle_child(&mut command)
    }
    /// Ends an idle sandbox.
    fn end(&mut self, idle: Idle) {
        drop(idle);
    }
    /// Damages a sandbox with `rm -rf` and makes its state clean again; the time of the latter, and what was done.
    fn clean(&mut self, scene: &Scene) -> Result<(Duration, &'static str), String>;
    /// What it takes of the disk.
    fn disk(&mut self) -> Result<Disk, String>;

    /// Runs a rogue's program to its end.
    fn run(&mut self, guard: &Guard, script: &str, deadline: Duration) -> Result<Ended, String> {
        let command = self.command(Job::Rogue, script)?;
        let ended = execution::run(guard.hold(&command), script, deadline);
        if ended.as_ref().is_ok_and(|ended| ended.late) {
            guard.clear();
        }
        ended
    }
}

/// Every contender, in the order of the table's columns.
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

/// Starts a command that says `ready` and stays.
fn idle_child(command: &mut Command) -> Result<Idle, String> {
    use std::os::unix::process::CommandExt;
    let log = tempfile::NamedTempFile::new().map_err(|error| format!("cannot make a log: {error}"))?;
    let (out, err) = (log.reopen(), log.reopen());
    let both = out.and_then(|out| err.map(|err| (out, err))).map_err(|error| format!("cannot open a log: {error}"))?;
    // A pipe that stays open would have to be kept; whoever reads gets the end of file.
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
            return Err(format!("no idle sandbox came to be; the last it said: {}", execution::short(&last, 240)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// First line of what a program says of its version.
fn version(program: &str, argument: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg(argument);
    let said = execution::run(command, "", Duration::from_secs(30))?.success()?;
    Ok(execution::short(said.out.lines().next().unwrap_or_default().trim(), 80))
}

/// Disk blocks below a path, as du has it.
fn size(path: &Path) -> Result<u64, String> {
    size_together(&[path.to_owned()])
}

/// Disk blocks below some paths; a file that is linked at several of them counts once.
fn size_together(paths: &[PathBuf]) -> Result<u64, String> {
    let mut du = Command::new("du");
    du.args(["-s", "-c", "-B1"]).args(paths);
    let said = execution::run(du, "", Duration::from_secs(120))?;
    let total = said.out.lines().last().and_then(|line| line.split_whitespace().next()?.parse().ok());
    total.ok_or_else(|| format!("du of {paths:?} says nothing"))
}

/// How the contenders that use a plain directory get a clean one: the copy is made anew.
fn clean_by_copy(scene: &Scene, root: &Path) -> Result<(Duration, &'static str), String> {
    let begin = Instant::now();
    scene.copy(root)?;
    Ok((begin.elapsed(), "the directory removed and copied anew"))
}
