//! The supervisor of one sandbox, which runs from when a command starts it until the sandbox has
//! ended.
//!
//! ```text
//!                 ┌ a request arrives ────────> the service that it is for answers
//! lock ─ start ───┤ a service's deadline ─────> it acts; it may have stopped the sandbox ──> stop services, rm: the end
//!                 └ no VMM any more, nothing to maintain, asked to end ──────────────────────> stop services: the end
//! ```
//! Everything in this module is one task, except the connections that services forward. The task
//! waits for events and for the next deadline of a service; it may not poll the machine in between.

use super::{
    FILE, SOCKET, SuperviseError,
    file::Supervision,
    log::Log,
    service::{Context, Outcome, Service},
    services,
    start::{self, SupervisorLock},
    talk,
};
use crate::{
    guest::stop::{StopError, Stopped},
    home::{directory::SandboxDirectory, locks::is_held_exclusively},
    manager::Manager,
    vmm::{lock, state},
};
use std::{future::Future, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout},
};

/// The text that a supervisor writes to its stdout when it is ready.
pub const READY: &str = start::READY;

/// Maximum time to read a request. A client has written it by the time it connects.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// Time that a supervisor without anything to maintain waits for a request for a port, for which it
/// may have been started.
const FIRST_PORT_WITHIN: Duration = Duration::from_secs(30);
/// Time between two checks of a sandbox whose VMM is being replaced or cannot be watched.
const POLL: Duration = Duration::from_millis(50);

/// Maintains the services that are recorded for a sandbox, until it has ended, there is nothing
/// left to maintain, or `told_to_end` resolves. Calls `ready` once the services have started. If
/// another supervisor already runs them, it calls `ready` too and returns immediately.
///
/// # Errors
/// Every [`SuperviseError`], before `ready` is called; after it, those of the sandbox's files.
pub async fn keep(
    manager: &Manager,
    sandbox: &str,
    ready: impl FnOnce(),
    told_to_end: impl Future<Output = ()>,
) -> Result<(), SuperviseError> {
    let sandbox = manager.find(sandbox)?;
    let directory = SandboxDirectory::open(sandbox.directory.path().to_owned())?;
    let Some(_lock) = SupervisorLock::try_take(&directory)? else {
        ready();
        return Ok(());
    };
    let Some(record) = Supervision::read(&directory)? else { return Ok(()) };
    directory.unlink(SOCKET)?;
    let control = directory.listen(SOCKET)?;
    let control = control.set_nonblocking(true).and_then(|()| UnixListener::from_std(control));
    let control = control.map_err(|error| directory.error("listen on", SOCKET, error))?;
    let log = Log::open(&directory)?;
    let context = Context::new(sandbox, directory, record, log);
    let mut keeper = Keeper { manager, context, services: services::all() };
    for service in &mut keeper.services {
        service.start(&mut keeper.context).await?;
    }
    ready();
    keeper.run(&control, told_to_end).await;
    keeper.stop_services().await;
    Ok(keeper.context.directory.unlink(SOCKET)?)
}

struct Keeper<'m> {
    manager: &'m Manager,
    context: Context,
    services: Vec<Box<dyn Service>>,
}

/// What the supervisor has to act on.
enum Due {
    Gone,
    ToldToEnd,
    Deadline,
    NobodyAsked,
    Asked(UnixStream),
}

impl Keeper<'_> {
    async fn run(&mut self, control: &UnixListener, told_to_end: impl Future<Output = ()>) {
        let Ok(watched) = SandboxDirectory::open(self.context.directory.path().to_owned()) else { return };
        let gone = gone(&watched);
        tokio::pin!(gone, told_to_end);
        let started = Instant::now();
        loop {
            let record = &self.context.record;
            let deadlines: Vec<_> = self.services.iter().map(|service| service.next_deadline(record)).collect();
            let nobody_asked = (!self.is_needed()).then_some(started + FIRST_PORT_WITHIN);
            let due = tokio::select! {
                () = &mut gone => Due::Gone,
                () = &mut told_to_end => Due::ToldToEnd,
                () = at(deadlines.iter().flatten().min().copied()) => Due::Deadline,
                () = at(nobody_asked) => Due::NobodyAsked,
                accepted = control.accept() => match accepted {
                    Ok((stream, _)) if is_of_owner(&stream) => Due::Asked(stream),
                    Ok(_) => continue,
                    Err(_) => {
                        sleep(POLL).await;
                        continue;
                    }
                },
            };
            match due {
                Due::Gone => return self.end_what_is_left().await,
                Due::ToldToEnd | Due::NobodyAsked => return,
                Due::Deadline => {
                    if self.serve_deadlines(&deadlines).await {
                        return;
                    }
                }
                Due::Asked(mut stream) => {
                    self.answer(&mut stream).await;
                    if !self.is_needed() {
                        // The next command that needs a service starts another supervisor.
                        return;
                    }
                }
            }
        }
    }

    fn is_needed(&self) -> bool {
        self.services.iter().any(|service| service.is_needed(&self.context.record))
    }

    /// Returns true if the sandbox has ended.
    async fn serve_deadlines(&mut self, deadlines: &[Option<Instant>]) -> bool {
        let now = Instant::now();
        for (at, deadline) in deadlines.iter().enumerate() {
            if deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            let Some(service) = self.services.get_mut(at) else { continue };
            if let Outcome::Stopped { stopped, remove, unused } = service.on_deadline(&mut self.context).await {
                let has_ended = self.ended(stopped, remove).await;
                drop(unused);
                if has_ended {
                    return true;
                }
            }
        }
        false
    }

    async fn ended(&mut self, stopped: Result<Stopped, StopError>, remove: bool) -> bool {
        let log = &mut self.context.log;
        match stopped {
            Err(error) if self.context.sandbox.state().is_ok_and(|state| state.is_live()) => {
                log.note(format_args!("cannot end the sandbox: {error}"));
                return false;
            }
            Ok(Stopped::ByForce(cause)) => log.note(format_args!("it was ended by force: {cause}")),
            Ok(Stopped::InOrder | Stopped::Otherwise(_)) | Err(_) => {}
        }
        // Services stop before the directory is removed: a client that finds the directory gone
        // must not find anything of the sandbox elsewhere.
        self.stop_services().await;
        if remove && let Err(error) = self.manager.remove(self.context.sandbox.id().as_str(), true).await {
            self.context.log.note(format_args!("cannot remove the sandbox: {error}"));
            return !self.context.directory.exists();
        }
        true
    }

    /// Ends a VMM that released its lock and still runs, or what it started: no later step would.
    async fn end_what_is_left(&mut self) {
        // Claims the directory, so that no reset starts another VMM meanwhile.
        let claimed = SandboxDirectory::open(self.context.directory.path().to_owned());
        if let Ok(directory) = claimed
            && matches!(directory.try_claim(), Ok(true))
            && let Err(error) = self.context.sandbox.kill().await
        {
            self.context.log.note(format_args!("cannot end what is left of the sandbox: {error}"));
        }
    }

    async fn stop_services(&mut self) {
        for service in &mut self.services {
            service.stop().await;
        }
    }

    async fn answer(&mut self, stream: &mut UnixStream) {
        let Ok(Ok(request)) = timeout(HEARD_WITHIN, talk::hear(stream)).await else { return };
        let mut answer = None;
        for service in &mut self.services {
            answer = service.on_request(&mut self.context, &request).await;
            if answer.is_some() {
                break;
            }
        }
        let Some(answer) = answer else { return };
        let reply = answer.unwrap_or_else(|error| talk::failed(&error));
        // A client that does not wait for the reply finds the result in the file.
        let _ = timeout(HEARD_WITHIN, talk::say(stream, &reply)).await;
    }
}

/// Waits until that time, or indefinitely.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits until the sandbox has no VMM and no process is giving it another one.
async fn gone(directory: &SandboxDirectory) {
    loop {
        let hint = state::status(directory).ok().flatten().map(|status| status.pid);
        match lock::find_holder(directory, hint) {
            Some(vmm) => drop(vmm.ended().await),
            // The VMM belongs to another user, and its process cannot be examined.
            None => sleep(POLL).await,
        }
        loop {
            if matches!(lock::try_exclude_vmm(directory), Ok(None)) {
                break;
            }
            if !directory.exists() || !directory.has(FILE) || !is_being_made(directory) {
                return;
            }
            sleep(POLL).await;
        }
    }
}

/// Returns true if a process has claimed the directory: a reset that replaces the VMM, or a `run`
/// that is about to remove the sandbox.
fn is_being_made(directory: &SandboxDirectory) -> bool {
    is_held_exclusively(directory, ".").unwrap_or(false)
}

/// Returns true for users that may do what this process may do: its own user, and root. The mode of
/// the socket allows the same users.
fn is_of_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        home::directory::STATUS,
        limits::lifetime::{AtEnd, TimeToLive},
        manager::tests::manager_with,
        supervision::{SupervisionSpec, publish::HostEnd, status::is_supervised},
    };
    use sandboxvm_protocol::{
        machine::HostMode,
        vmm::{Phase, VmStatus},
    };
    use std::{
        future::{pending, ready},
        os::unix::process::{CommandExt, ExitStatusExt},
        process::{Child, Command, Stdio},
    };

    const ID: &str = "abcdefgh";

    /// Starts a VMM that holds its lock and does not answer.
    fn sandbox(spec: &SupervisionSpec) -> (tempfile::TempDir, Manager, SandboxDirectory, Child) {
        let (home, manager) = manager_with(&[ID]);
        let directory = SandboxDirectory::open(manager.find(ID).unwrap().path()).unwrap();
        let lock = lock::create(&directory).unwrap();
        let vmm = Command::new("sleep").arg("60").stdin(Stdio::from(lock)).process_group(0).spawn().unwrap();
        let status = VmStatus {
            pid: vmm.id(),
            phase: Phase::Ready,
            host_mode: HostMode::Vmx,
            reason: None,
            missing: Vec::new(),
            clocks_jump: false,
            wire: 1,
        };
        directory.write_new(STATUS, &serde_json::to_vec(&status).unwrap()).unwrap();
        Supervision::of(spec, false).unwrap().write(&directory).unwrap();
        (home, manager, directory, vmm)
    }

    fn a_port() -> SupervisionSpec {
        SupervisionSpec { ports: vec!["8000".parse().unwrap()], ..SupervisionSpec::default() }
    }

    #[tokio::test]
    async fn supervisor_ends_with_the_vmm_and_leaves_nothing() {
        let (_home, manager, directory, mut vmm) = sandbox(&a_port());
        let kept = keep(&manager, ID, || vmm.kill().unwrap(), pending());
        timeout(Duration::from_secs(20), kept).await.unwrap().unwrap();
        assert_eq!(vmm.wait().unwrap().signal(), Some(9));
        assert!(!directory.has(SOCKET) && !is_supervised(&directory).unwrap());
    }

    #[tokio::test]
    async fn ttl_ends_a_sandbox_that_does_not_answer() {
        let ttl = Some(TimeToLive { after: Duration::from_millis(100), then: AtEnd::Remove });
        let (_home, manager, directory, mut vmm) = sandbox(&SupervisionSpec { ttl, ..a_port() });
        timeout(Duration::from_secs(20), keep(&manager, ID, || (), pending())).await.unwrap().unwrap();
        assert_eq!(vmm.wait().unwrap().signal(), Some(9));
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn supervisors_exclude_each_other_and_keep_the_port() {
        let (_home, manager, directory, mut vmm) = sandbox(&a_port());
        let port = || Supervision::read(&directory).unwrap().unwrap().ports.remove(0).shown;
        let mut places = Vec::new();
        for _ in 0..2 {
            let (mut first, mut second) = (None, false);
            keep(&manager, ID, || first = Some(port()), ready(())).await.unwrap();
            places.push(first.unwrap());
            let lock = SupervisorLock::try_take(&directory).unwrap().unwrap();
            keep(&manager, ID, || second = true, pending()).await.unwrap();
            assert!(second, "who finds another is told that all is well");
            drop(lock);
        }
        assert_eq!(places[0], places[1]);
        let HostEnd::Tcp(address) = &places[0].host else { panic!() };
        // Another process has the place by now: this is reported, and does not stop the other
        // services.
        let _taken = std::net::TcpListener::bind(address).unwrap();
        keep(&manager, ID, || (), ready(())).await.unwrap();
        assert!(port().error.is_some(), "{:?}", port());
        vmm.kill().unwrap();
        vmm.wait().unwrap();
    }
}
