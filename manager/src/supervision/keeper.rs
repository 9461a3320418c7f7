//! The supervisor itself: one sandbox, from when somebody starts it until the sandbox has ended.
//!
//! ```text
//!                 ┌ a port is asked for ──> listen, write down
//! lock ─ listen ──┤ time is up ───────────> stop, rm                    ──> the end: sockets go, the lock is free
//!                 ├ nobody uses it ───────> pause; stop, rm               ╱
//!                 └ no VMM any more, nothing to keep up, told to end ────╱
//! ```
//! Everything in here is one task but for the connections it passes on. It waits for events and for two moments; it never
//! looks at the machine in between.

use super::{
    FILE, SOCKET, SuperviseError,
    file::{Port, Supervision},
    listeners::{self, Listening, MAX_CONNECTIONS},
    publish::{HostEnd, MAX_PORTS, Publish, PublishedPort},
    start::{self, SupervisorLock},
    talk::{self, Reply, Request},
};
use crate::{
    audit::Event,
    clock,
    guest::{
        in_use::Unused,
        interruption::{self, Interruption},
        stop::{StopError, Stopped},
    },
    home::{directory::SandboxDirectory, locks::is_held_exclusively},
    limits::lifetime::{AtEnd, WhenIdle},
    manager::Manager,
    sandbox::Sandbox,
    vmm::{
        lock,
        state::{self, State},
    },
};
use sandboxvm_protocol::agent::port::PortNumber;
use std::{fs::File, future::Future, io::Write, sync::Arc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

/// What a supervisor writes to its stdout when it is told that it is ready.
pub const READY: &str = start::READY;

/// Processes have this long between SIGTERM and SIGKILL, as with `stop`.
const GRACE: Duration = Duration::from_secs(10);
/// Longest wait by a clock that does not count while the host sleeps.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// After something that should have worked and did not.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Between two looks at a sandbox that is in use, or paused.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// Who asks for something has it written by the time it connects.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// For a supervisor that was started to be asked for a port.
const FIRST_PORT_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at a sandbox whose VMM is being replaced, or cannot be watched.
const POLL: Duration = Duration::from_millis(50);
/// Lines that one supervisor writes into its log.
const MOST_WORDS: u32 = 200;

/// Keeps up what is written down for a sandbox, until it has ended or there is nothing left to keep up, or `told_to_end`
/// resolves. `ready` is called once its ports are listened on; also when another supervisor does that already, and this
/// returns at once.
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
    // Not that one's: it says for how long the sandbox is being made.
    let directory = SandboxDirectory::open(sandbox.directory.path().to_owned())?;
    let Some(_lock) = SupervisorLock::try_take(&directory)? else {
        ready();
        return Ok(());
    };
    let Some(supervision) = Supervision::read(&directory)? else { return Ok(()) };
    directory.unlink(SOCKET)?;
    let control = directory.listen(SOCKET)?;
    let control = control.set_nonblocking(true).and_then(|()| UnixListener::from_std(control));
    let control = control.map_err(|error| directory.error("listen on", SOCKET, error))?;
    let log = Log { file: start::log(&directory)?, left: MOST_WORDS };
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut keeper = Keeper {
        manager,
        sandbox: Arc::new(sandbox),
        directory,
        supervision,
        listening: Vec::new(),
        room,
        log,
        end_was_told: false,
    };
    keeper.listen().await?;
    ready();
    let kept = keeper.keep(&control, told_to_end).await;
    keeper.close_all().await;
    keeper.directory.unlink(SOCKET)?;
    kept
}

struct Keeper<'m> {
    manager: &'m Manager,
    sandbox: Arc<Sandbox>,
    directory: SandboxDirectory,
    supervision: Supervision,
    /// Of each port; `None` where something else has its place.
    listening: Vec<Option<Listening>>,
    room: Arc<Semaphore>,
    log: Log,
    /// Why it ends is in the audit log.
    end_was_told: bool,
}

/// What happened.
enum Due {
    Gone,
    ToldToEnd,
    TimeIsUp,
    LookForUsers,
    NobodyAsked,
    Asked(UnixStream),
}

impl Keeper<'_> {
    /// Begins to listen on all ports. Those that this sandbox had before are shown as lost when their place is taken; a new
    /// one whose place is taken is an error.
    async fn listen(&mut self) -> Result<(), SuperviseError> {
        for port in &mut self.supervision.ports {
            match listeners::listen(port, &self.sandbox, &self.room).await {
                Ok((listening, end)) => {
                    let is_new = !port.was_ours;
                    (port.shown.host, port.shown.error, port.was_ours) = (end, None, true);
                    self.listening.push(Some(listening));
                    if is_new {
                        self.sandbox.trail().note(published(&port.shown));
                    }
                }
                Err(source) if port.was_ours => {
                    self.log.note(format_args!("cannot listen on {} any more: {source}", port.shown.host));
                    port.shown.error = Some(source.to_string());
                    self.listening.push(None);
                }
                Err(source) => {
                    let (port, end) = (port.shown.guest_port, port.shown.host.clone());
                    return Err(SuperviseError::Listen { port, end, source });
                }
            }
        }
        if !self.supervision.ports.is_empty() {
            self.supervision.write(&self.directory)?;
        }
        Ok(())
    }

    async fn keep(
        &mut self,
        control: &UnixListener,
        told_to_end: impl Future<Output = ()>,
    ) -> Result<(), SuperviseError> {
        let watched = SandboxDirectory::open(self.directory.path().to_owned())?;
        let gone = gone(&watched);
        tokio::pin!(gone, told_to_end);
        let mut last_seen = Duration::ZERO;
        let mut look_at = Instant::now();
        let mut retry_ttl_at = Instant::now();
        let started = Instant::now();
        loop {
            let ttl_at = self.supervision.ttl.as_ref().map(|ttl| {
                // Looked at again after a while, since the host may have slept.
                retry_ttl_at.max(Instant::now() + ttl.deadline.left().min(LONGEST_WAIT))
            });
            let look = self.supervision.idle.map(|_| look_at);
            let nobody_asked = self.supervision.is_empty().then_some(started + FIRST_PORT_WITHIN);
            let due = tokio::select! {
                () = &mut gone => Due::Gone,
                () = &mut told_to_end => Due::ToldToEnd,
                () = at(ttl_at) => Due::TimeIsUp,
                () = at(look) => Due::LookForUsers,
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
                Due::Gone => {
                    self.end_what_is_left().await;
                    return Ok(());
                }
                Due::ToldToEnd | Due::NobodyAsked => return Ok(()),
                Due::TimeIsUp => {
                    let up = self.supervision.ttl.as_ref().filter(|ttl| ttl.deadline.left().is_zero());
                    if let Some(then) = up.map(|ttl| ttl.rule.then) {
                        if self.time_is_up(then).await {
                            return Ok(());
                        }
                        retry_ttl_at = Instant::now() + AGAIN_AFTER;
                    }
                }
                Due::LookForUsers => match self.look_for_users(&mut last_seen).await {
                    Some(wait) => look_at = Instant::now() + wait.min(LONGEST_WAIT),
                    None => return Ok(()),
                },
                Due::Asked(mut stream) => {
                    self.answer(&mut stream).await;
                    if self.supervision.is_empty() {
                        // Whoever asks next starts another.
                        return Ok(());
                    }
                }
            }
        }
    }

    /// A VMM that let go of its lock may be there, or something that it started: nothing ends that later.
    async fn end_what_is_left(&mut self) {
        // Claimed, so that no reset starts another VMM meanwhile.
        let claimed = SandboxDirectory::open(self.directory.path().to_owned());
        if let Ok(directory) = claimed
            && matches!(directory.try_claim(), Ok(true))
            && let Err(error) = self.sandbox.kill().await
        {
            self.log.note(format_args!("cannot end what is left of the sandbox: {error}"));
        }
    }

    /// True when the sandbox has ended.
    async fn time_is_up(&mut self, then: AtEnd) -> bool {
        self.log.note(format_args!("its time is up: {then}"));
        self.tell_end(Event::TimeUp { then });
        let stopped = self.sandbox.stop(GRACE).await;
        self.ended(stopped, then == AtEnd::Remove).await
    }

    /// Says why it is about to be ended; in the log once, though ending it may take several attempts.
    fn tell_end(&mut self, event: Event) {
        interruption::announce(&self.directory, Interruption::Expired);
        if !std::mem::replace(&mut self.end_was_told, true) {
            self.sandbox.trail().note(event);
        }
    }

    async fn ended(&mut self, stopped: Result<Stopped, StopError>, remove: bool) -> bool {
        match stopped {
            Err(error) if self.sandbox.state().is_ok_and(|state| state.is_live()) => {
                self.log.note(format_args!("cannot end the sandbox: {error}"));
                return false;
            }
            Ok(Stopped::ByForce(cause)) => self.log.note(format_args!("it was ended by force: {cause}")),
            Ok(Stopped::InOrder | Stopped::Otherwise(_)) | Err(_) => {}
        }
        // Before its directory: whoever sees that gone finds nothing of it elsewhere.
        self.close_all().await;
        if remove && let Err(error) = self.manager.remove(self.sandbox.id().as_str(), true).await {
            self.log.note(format_args!("cannot remove the sandbox: {error}"));
            return !self.directory.exists();
        }
        true
    }

    /// Does what the idle rule says when it is time to. The value is when to look again; `None` when it has ended.
    async fn look_for_users(&mut self, last_seen: &mut Duration) -> Option<Duration> {
        let rule = self.supervision.idle?;
        let (shortest, longest) = LOOKS;
        let soon = (rule.after / 4).clamp(shortest, longest);
        if !matches!(self.sandbox.state(), Ok(State::Running)) {
            // Whoever paused it wants it to stay so; whoever resumes it says when.
            return Some(soon);
        }
        let unused = match Unused::try_begin(&self.directory) {
            Ok(Some(unused)) => unused,
            Ok(None) => {
                *last_seen = clock::since_boot();
                return Some(soon);
            }
            Err(error) => {
                self.log.note(format_args!("cannot look for users: {error}"));
                return Some(AGAIN_AFTER);
            }
        };
        let idle_at = (*last_seen).max(unused.last_use()).saturating_add(rule.after);
        let left = idle_at.saturating_sub(clock::since_boot());
        if !left.is_zero() {
            return Some(left);
        }
        match rule.then {
            WhenIdle::Pause => {
                if let Err(error) = unused.pause(&self.directory).await {
                    self.log.note(format_args!("cannot pause the idle sandbox: {error}"));
                    return Some(AGAIN_AFTER);
                }
                self.sandbox.trail().note(Event::IdlePaused);
                Some(soon)
            }
            WhenIdle::Stop | WhenIdle::Remove => {
                self.log.note(format_args!("nobody used it: {}", rule.then));
                self.tell_end(Event::IdleEnded { then: rule.then });
                // Nobody can begin to use it meanwhile; who tries waits, and is told.
                let stopped = self.sandbox.stop_unused(GRACE).await;
                let ended = self.ended(stopped, rule.then == WhenIdle::Remove).await;
                drop(unused);
                if ended { None } else { Some(AGAIN_AFTER) }
            }
        }
    }

    async fn close_all(&mut self) {
        for listening in std::mem::take(&mut self.listening).into_iter().flatten() {
            listening.close().await;
        }
    }

    async fn answer(&mut self, stream: &mut UnixStream) {
        let Ok(Ok(request)) = timeout(HEARD_WITHIN, talk::hear(stream)).await else { return };
        let done = match request {
            Request::Publish(publish) => self.publish(publish).await,
            Request::Unpublish { guest, host } => self.unpublish(guest, host.as_ref()).await,
        };
        let reply = done.map_or_else(|error| talk::failed(&error), Reply::Done);
        // Who asks and does not wait finds it in the file.
        let _ = timeout(HEARD_WITHIN, talk::say(stream, &reply)).await;
    }

    async fn publish(&mut self, Publish { guest, host }: Publish) -> Result<Vec<PublishedPort>, SuperviseError> {
        if self.supervision.ports.len() >= MAX_PORTS {
            return Err(SuperviseError::TooMany);
        }
        if self.supervision.ports.iter().any(|port| port.shown.host == host) {
            return Err(SuperviseError::Taken(host));
        }
        let shown = PublishedPort { guest_port: guest, host, error: None };
        let mut port = Port { shown, was_ours: false };
        let (listening, end) = match listeners::listen(&port, &self.sandbox, &self.room).await {
            Ok(listening) => listening,
            Err(source) => return Err(SuperviseError::Listen { port: guest, end: port.shown.host, source }),
        };
        (port.shown.host, port.was_ours) = (end, true);
        let shown = port.shown.clone();
        self.supervision.ports.push(port);
        if let Err(error) = self.supervision.write(&self.directory) {
            self.supervision.ports.pop();
            return Err(error);
        }
        self.listening.push(Some(listening));
        self.sandbox.trail().note(published(&shown));
        Ok(vec![shown])
    }

    async fn unpublish(
        &mut self,
        guest: PortNumber,
        host: Option<&HostEnd>,
    ) -> Result<Vec<PublishedPort>, SuperviseError> {
        let is_meant = |port: &Port| port.shown.guest_port == guest && host.is_none_or(|host| *host == port.shown.host);
        let mut kept = self.supervision.clone();
        kept.ports.retain(|port| !is_meant(port));
        if kept.ports.len() == self.supervision.ports.len() {
            return Err(SuperviseError::Unknown(guest));
        }
        kept.write(&self.directory)?;
        let before = std::mem::replace(&mut self.supervision, kept).ports;
        let listening = std::mem::take(&mut self.listening);
        let mut taken_back = Vec::new();
        for (port, listening) in before.into_iter().zip(listening) {
            if is_meant(&port) {
                if let Some(listening) = listening {
                    listening.close().await;
                }
                let (guest_port, host) = (port.shown.guest_port.get(), port.shown.host.to_string());
                self.sandbox.trail().note(Event::PortTakenBack { guest_port, host });
                taken_back.push(port.shown);
            } else {
                self.listening.push(listening);
            }
        }
        Ok(taken_back)
    }
}

fn published(port: &PublishedPort) -> Event {
    Event::PortPublished { guest_port: port.guest_port.get(), host: port.host.to_string() }
}

/// At that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// When the sandbox has no VMM any more and nobody is giving it another.
async fn gone(directory: &SandboxDirectory) {
    loop {
        let hint = state::status(directory).ok().flatten().map(|status| status.pid);
        match lock::find_holder(directory, hint) {
            Some(vmm) => drop(vmm.ended().await),
            // Another user's, which we cannot look into.
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

/// Somebody has claimed the directory: a reset that replaces the VMM, or a `run` that is about to remove it.
fn is_being_made(directory: &SandboxDirectory) -> bool {
    is_held_exclusively(directory, ".").unwrap_or(false)
}

/// A bounded log.
struct Log {
    file: File,
    left: u32,
}

impl Log {
    fn note(&mut self, what: impl std::fmt::Display) {
        if self.left > 0 {
            self.left -= 1;
            let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
            // Nobody is left to tell that it cannot be told.
            let _ = writeln!(self.file, "{now} {what}");
        }
    }
}

/// Whoever may do what this process does: its own user, and root. The socket's mode says so too.
fn is_of_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        home::directory::STATUS,
        limits::lifetime::TimeToLive,
        manager::tests::manager_with,
        supervision::{SupervisionSpec, status::is_supervised},
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

    /// A sandbox whose VMM holds its lock and answers nothing.
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
        };
        directory.write_new(STATUS, &serde_json::to_vec(&status).unwrap()).unwrap();
        Supervision::of(spec).unwrap().write(&directory).unwrap();
        (home, manager, directory, vmm)
    }

    fn a_port() -> SupervisionSpec {
        SupervisionSpec { ports: vec!["8000".parse().unwrap()], ..SupervisionSpec::default() }
    }

    #[tokio::test]
    async fn it_ends_with_the_vmm_and_nothing_of_it_stays() {
        let (_home, manager, directory, mut vmm) = sandbox(&a_port());
        let kept = keep(&manager, ID, || vmm.kill().unwrap(), pending());
        timeout(Duration::from_secs(20), kept).await.unwrap().unwrap();
        assert_eq!(vmm.wait().unwrap().signal(), Some(9));
        assert!(!directory.has(SOCKET) && !is_supervised(&directory).unwrap());
    }

    #[tokio::test]
    async fn time_ends_a_sandbox_that_does_not_answer() {
        let ttl = Some(TimeToLive { after: Duration::from_millis(100), then: AtEnd::Remove });
        let (_home, manager, directory, mut vmm) = sandbox(&SupervisionSpec { ttl, ..a_port() });
        timeout(Duration::from_secs(20), keep(&manager, ID, || (), pending())).await.unwrap().unwrap();
        assert_eq!(vmm.wait().unwrap().signal(), Some(9));
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn there_is_one_at_a_time_and_its_place_stays_the_same_for_the_next() {
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
        // Somebody else has the place by now: shown, and no reason to give up the rest.
        let _taken = std::net::TcpListener::bind(address).unwrap();
        keep(&manager, ID, || (), ready(())).await.unwrap();
        assert!(port().error.is_some(), "{:?}", port());
        vmm.kill().unwrap();
        vmm.wait().unwrap();
    }
}
