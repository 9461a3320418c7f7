//! Docker: Debian's docker.io with a separate daemon, whose data, state and socket are in the
//! temporary directory. The daemon creates no bridge and no firewall rules, so containers have no
//! network. It runs in a separate mount namespace, so that its mounts and its files in /run,
//! /etc/docker and /opt are removed with it.

use super::{Contender, DAMAGE, Disk, Idle, Job, idle_child, size};
use crate::{
    execution::{self, short, signal},
    guard::Guard,
    scene::Scene,
};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const IMAGE: &str = "compare:1";

/// The contender Docker.
#[derive(Debug, Default)]
pub struct Docker {
    directory: PathBuf,
    parent: String,
    daemon: Option<Child>,
    version: String,
    started: usize,
}

impl Docker {
    fn client(&self, arguments: &[&str]) -> Command {
        // Debian's client, even if another one is installed.
        let program = if fs::exists("/usr/bin/docker").unwrap_or(false) { "/usr/bin/docker" } else { "docker" };
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}", self.directory.join("d.sock").display()));
        command.env("DOCKER_CONFIG", self.directory.join("config")).args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        Ok(execution::run(self.client(arguments), "", super::patience())?.success()?.out.trim().to_owned())
    }

    fn start_daemon(&mut self) -> Result<(), String> {
        const INSIDE: &str = "for d in /run /etc/docker /opt; do [ ! -d $d ] || mount -t tmpfs tmpfs $d || exit 1; done; \
             exec dockerd \"$@\"";
        let path = |name: &str| self.directory.join(name).display().to_string();
        let log = fs::File::create(path("log")).map_err(|error| format!("cannot make the daemon's log: {error}"))?;
        let err = log.try_clone().map_err(|error| format!("cannot share the daemon's log: {error}"))?;
        let mut daemon = Command::new("unshare");
        daemon.args(["--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh"]);
        daemon.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--data-root", &path("data")]);
        daemon.args(["--exec-root", &path("exec"), "--pidfile", &path("pid"), "--host"]);
        daemon.arg(format!("unix://{}", path("d.sock")));
        daemon.stdin(Stdio::null()).stdout(log).stderr(err).process_group(0);
        self.daemon = Some(daemon.spawn().map_err(|error| format!("cannot start dockerd: {error}"))?);
        let begin = Instant::now();
        loop {
            if let Ok(version) = self.ask(&["version", "--format", "{{.Server.Version}}"]) {
                self.version = version;
                return Ok(());
            }
            let ended = self.daemon.as_mut().is_some_and(|daemon| matches!(daemon.try_wait(), Ok(Some(_))));
            if ended || begin.elapsed() > Duration::from_secs(60) {
                let log = fs::read_to_string(path("log")).unwrap_or_default();
                return Err(format!(
                    "dockerd did not start: {}",
                    short(log.lines().last().unwrap_or("no message"), 300)
                ));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Contender for Docker {
    fn name(&self) -> &'static str {
        "Docker"
    }

    fn how(&self) -> String {
        format!(
            "docker.io {}, without --privileged: docker run --rm -i IMAGE COMMAND (and --cgroup-parent, for this program's own \
             guard; its daemon runs with --bridge=none, so containers have no network here: the default is a bridge, over which \
             the host's addresses and the Internet are reached)",
            self.version
        )
    }

    fn prepare(&mut self, scene: &Scene, guard: &Guard) -> Result<(), String> {
        self.directory = scene.path().join("docker");
        self.parent = guard.parent();
        fs::create_dir_all(self.directory.join("config"))
            .map_err(|error| format!("cannot make a directory: {error}"))?;
        self.start_daemon()?;
        let archive = self.directory.join("base.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(scene.base()).arg("-cf").arg(&archive).arg(".");
        execution::run(tar, "", super::patience())?.success()?;
        self.ask(&["import", &archive.to_string_lossy(), IMAGE])?;
        fs::remove_file(&archive).map_err(|error| format!("cannot remove the archive: {error}"))
    }

    fn command(&mut self, job: Job, _: &str) -> Result<Command, String> {
        let mut command = self.client(&["run", "--rm", "-i", "--cgroup-parent", &self.parent, IMAGE]);
        command.args(job.command());
        Ok(command)
    }

    fn remark(&self, probe: &str) -> Option<&'static str> {
        match probe {
            "network" => Some(
                "Here without a network: by default a container has one, over a bridge, to the host's other addresses and to the \
                 Internet; that was not tried",
            ),
            "fork" => Some("docker run --pids-limit would hold it"),
            "memory" => Some("docker run --memory would hold it"),
            _ => None,
        }
    }

    fn idle(&mut self) -> Result<Idle, String> {
        self.started += 1;
        let name = format!("idle{}", self.started);
        let mut command = self.client(&["run", "--rm", "--cgroup-parent", &self.parent, "--name", &name, IMAGE]);
        command.args(Job::Idle.command());
        let mut idle = idle_child(&mut command)?;
        let pid = self.ask(&["inspect", "--format", "{{.State.Pid}}", &name])?;
        // The process of the container's shim, and all that it started. The client may have ended.
        let stat =
            fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| format!("process {pid}: {error}"))?;
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        idle.roots = vec![parent.ok_or("a container has no shim")?];
        idle.name = Some(name);
        Ok(idle)
    }

    fn end(&mut self, idle: Idle) {
        if let Some(name) = &idle.name
            && let Err(error) = self.ask(&["rm", "-f", name])
        {
            eprintln!("compare: {name} could not be removed: {error}");
        }
    }

    fn clean(&mut self, _: &Scene) -> Result<(Duration, &'static str), String> {
        let idle = self.idle()?;
        let name = idle.name.clone().unwrap_or_default();
        self.ask(&["exec", &name, "sh", "-c", DAMAGE])?;
        let begin = Instant::now();
        self.end(idle);
        let idle = self.idle()?;
        let elapsed = begin.elapsed();
        self.end(idle);
        Ok((elapsed, "docker rm -f, and docker run until the new container's command runs"))
    }

    fn disk(&mut self) -> Result<Disk, String> {
        let once = size(&self.directory.join("data"))?;
        let idle = self.idle()?;
        let with_one = size(&self.directory.join("data"));
        self.end(idle);
        Ok(Disk { once, each: with_one?.saturating_sub(once) })
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        signal(daemon.id(), Signal::TERM);
        for _ in 0..200 {
            if matches!(daemon.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        execution::end_group(daemon);
        let _ = daemon.wait();
    }
}
