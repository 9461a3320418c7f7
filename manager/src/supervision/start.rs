//! Asks for the supervision of a sandbox: records the wanted services, starts the supervisor if
//! there is none, and sends it requests for ports. `supervision.json` may be written only under the
//! supervisor's lock, so it never has two writers.

use super::{
    FILE, LOCK, LOG, SuperviseError, SupervisionSpec, SupervisorProgram,
    file::Supervision,
    log,
    publish::{HostEnd, Publish, PublishedPort},
    settings,
    status::is_supervised,
    talk::{self, NetworkReport, NetworkRequest, Reply, Request},
};
use crate::{
    guest::in_use,
    home::{
        directory::{DirectoryError, SandboxDirectory},
        flock::Sharing,
        locks::{FileLock, LockClass},
    },
    network::{operator::present, record::NetworkRecord, spec::NetworkSpec},
    sandbox::Sandbox,
};
use futures_util::future::BoxFuture;
use rustix::fs::{Mode, OFlags, openat};
use sandboxvm_protocol::{agent::port::PortNumber, egress::SavedPin};
use std::{
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::UnixStream, time::timeout};

/// Maximum time to wait for processes that only check whether the lock is free, which hold it for
/// microseconds.
const LOCKED_WITHIN: Duration = Duration::from_secs(1);
/// Maximum time until a supervisor is ready. Binding ports takes microseconds; the limit allows for
/// a host that swaps.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The text that a supervisor writes when it is ready.
pub(super) const READY: &str = "ready\n";
/// Maximum size in bytes of an error that it writes instead, which is a line or two.
const MAX_WORDS: u64 = 8192;
const ATTEMPTS: u32 = 3;

/// The right to be the supervisor, or to write its file if there is none.
#[derive(Debug)]
pub(super) struct SupervisorLock(#[expect(dead_code, reason = "held for its lock")] FileLock);

impl SupervisorLock {
    /// Takes the lock. Returns `None` while another process has it.
    pub(super) fn try_take(directory: &SandboxDirectory) -> Result<Option<Self>, DirectoryError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(directory.fd(), LOCK, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| directory.error("open", LOCK, error))?;
        let taken = FileLock::wait_within(LockClass::Supervisor, Sharing::Exclusive, file.into(), LOCKED_WITHIN);
        Ok(taken.map_err(|error| directory.error("lock", LOCK, error))?.map(Self))
    }
}

/// Writes down the services of a new sandbox unless a supervisor has them already. A supervisor
/// that is started later maintains them.
pub(crate) fn plan(
    directory: &SandboxDirectory,
    spec: &SupervisionSpec,
    has_shares: bool,
) -> Result<(), SuperviseError> {
    let has_network = NetworkRecord::exists(directory);
    if spec.is_empty() && !has_network && !has_shares {
        return Ok(());
    }
    if spec.idle.is_some() {
        in_use::watch(directory)?;
    }
    let supervision = Supervision::of(spec, has_network)?.with_shares(has_shares);
    if let Some(_lock) = SupervisorLock::try_take(directory)? {
        supervision.write(directory)?;
    }
    Ok(())
}

impl Sandbox {
    /// Starts the services of `spec` and the network of a new sandbox: its time to live starts now, its
    /// ports are listened on and its network card has a link when this returns.
    ///
    /// # Errors
    /// Every [`SuperviseError`]; no service is started then.
    pub async fn supervise(&self, program: &SupervisorProgram, spec: &SupervisionSpec) -> Result<(), SuperviseError> {
        let has_shares = self.record.mounts.has_shares();
        if spec.is_empty() && !NetworkRecord::exists(&self.directory) && !has_shares {
            return Ok(());
        }
        plan(&self.directory, spec, has_shares)?;
        let started = self.start_supervisor(program).await;
        if started.is_err() {
            self.directory.unlink(FILE)?;
        }
        started
    }

    /// Starts a supervisor if the sandbox needs one and has none. Waits for it only if the sandbox has a
    /// network: then the network card has a link when this returns. Blocks meanwhile; within a runtime,
    /// [`Self::ensure_network`] does not. Returns true if it started one.
    ///
    /// # Errors
    /// When it cannot be started, or the sandbox's files cannot be read.
    pub fn ensure_supervised(&self, program: &SupervisorProgram) -> Result<bool, SuperviseError> {
        let wanted = Supervision::read(&self.directory)?.filter(|supervision| !supervision.is_empty());
        let Some(supervision) = wanted else { return Ok(false) };
        if is_supervised(&self.directory)? || !self.state()?.is_live() {
            return Ok(false);
        }
        if supervision.network.is_none() && !supervision.shares {
            self.spawn_supervisor(program, Stdio::null())?;
            return Ok(true);
        }
        let spawn = |source| SuperviseError::Spawn { program: program.program.clone(), source };
        let (ours, theirs) = StdUnixStream::pair().map_err(spawn)?;
        ours.set_read_timeout(Some(READY_WITHIN)).map_err(spawn)?;
        self.spawn_supervisor(program, Stdio::from(OwnedFd::from(theirs)))?;
        let mut words = Vec::new();
        let said = ours.take(MAX_WORDS).read_to_end(&mut words).map(drop);
        self.is_ready(said.ok(), &words).map(|()| true)
    }

    /// Starts a supervisor if the sandbox has a network and no supervisor, and waits until the network
    /// card has a link.
    ///
    /// # Errors
    /// Every [`SuperviseError`].
    pub async fn ensure_network(&self, program: &SupervisorProgram) -> Result<(), SuperviseError> {
        let is_wanted = Supervision::read(&self.directory)?
            .is_some_and(|supervision| supervision.network.is_some() || supervision.shares);
        if !is_wanted || is_supervised(&self.directory)? || !self.state()?.is_live() {
            return Ok(());
        }
        self.start_supervisor(program).await
    }

    /// Replaces what the sandbox may reach. Connections that are not allowed any more are cut. If the
    /// sandbox does not run, the settings are recorded for when it does.
    ///
    /// # Errors
    /// Every [`SuperviseError`]. After [`SuperviseError::NetworkDown`] the settings are recorded, and
    /// nothing passes until they are in force.
    pub async fn set_network(&self, program: &SupervisorProgram, network: &NetworkSpec) -> Result<(), SuperviseError> {
        if !self.record.network_card {
            return Err(SuperviseError::NoCard(self.label()));
        }
        let mut record = NetworkRecord::of(self.home.network(), network)?;
        present::write(&self.home)?;
        // They are in the file before the record refers to them; those that it does not refer to are
        // dropped once it is written.
        record.keep_values(&self.directory)?;
        if !self.state()?.is_live() || !NetworkRecord::exists(&self.directory) {
            self.record_network(&record)?;
        }
        if self.state()?.is_live() {
            let set = Request::Network(NetworkRequest::Set(Box::new(record)));
            self.ask_supervisor(program, &set).await?;
        }
        Ok(())
    }

    /// Writes the settings of a network that no supervisor has.
    fn record_network(&self, record: &NetworkRecord) -> Result<(), SuperviseError> {
        // If a restriction is not logged, the next change that the log is to take says why.
        let _ = settings::replace(record, &self.trail(), &self.directory)?;
        record.drop_values(&self.directory)?;
        if let Some(_lock) = SupervisorLock::try_take(&self.directory)? {
            let supervision = match Supervision::read(&self.directory)? {
                Some(supervision) => supervision.with_network(),
                None => {
                    Supervision::of(&SupervisionSpec::default(), true)?.with_shares(self.record.mounts.has_shares())
                }
            };
            supervision.write(&self.directory)?;
        }
        Ok(())
    }

    /// Returns the state of the network, or `None` if the sandbox has none or no supervisor.
    ///
    /// # Errors
    /// Every [`SuperviseError`].
    pub async fn network_report(&self) -> Result<Option<NetworkReport>, SuperviseError> {
        match self.tell_network(NetworkRequest::Report).await? {
            Some(Reply::Network(report)) => Ok(Some(report)),
            Some(Reply::Failed(message)) => Err(SuperviseError::Refused(message)),
            Some(_) | None => Ok(None),
        }
    }

    /// Returns the addresses that the guest got as answers to its questions, as far as they are alive
    /// and a supervisor knows them.
    pub(crate) async fn network_pins(&self, is_replaced: bool) -> Vec<SavedPin> {
        match self.tell_network(NetworkRequest::Pins { is_replaced }).await {
            Ok(Some(Reply::Pins(pins))) => pins,
            // Without pins the guest asks for its names again.
            _ => Vec::new(),
        }
    }

    /// Connects the network to the machine that replaced the one before. If that fails, the supervisor
    /// tries again.
    pub(crate) async fn reattach_network(&self) {
        let _ = self.tell_network(NetworkRequest::Reattach).await;
    }

    /// Asks the supervisor about the network. Returns `None` if there is no network or no supervisor.
    fn tell_network(&self, request: NetworkRequest) -> BoxFuture<'_, Result<Option<Reply>, SuperviseError>> {
        Box::pin(async move {
            if !NetworkRecord::exists(&self.directory) || !is_supervised(&self.directory)? {
                return Ok(None);
            }
            let asked = talk::ask(&self.directory, &Request::Network(request)).await;
            asked.map(Some).map_err(|error| self.lost(&format!("does not answer ({error})")))
        })
    }

    /// Publishes a port of a running sandbox.
    ///
    /// # Errors
    /// Every [`SuperviseError`]; the port is not published then.
    pub async fn publish(
        &self,
        program: &SupervisorProgram,
        publish: Publish,
    ) -> Result<PublishedPort, SuperviseError> {
        let state = self.state()?;
        if !state.is_live() {
            return Err(SuperviseError::NotRunning { sandbox: self.label(), state });
        }
        let mut ports = self.ask_supervisor(program, &Request::Publish(publish)).await?;
        ports.pop().ok_or_else(|| self.lost("gave no answer"))
    }

    /// Unpublishes a port: all its ends on the host, or only `host`. Open connections continue.
    /// Returns what was unpublished.
    ///
    /// # Errors
    /// Every [`SuperviseError`].
    pub async fn unpublish(
        &self,
        program: &SupervisorProgram,
        guest: PortNumber,
        host: Option<HostEnd>,
    ) -> Result<Vec<PublishedPort>, SuperviseError> {
        let published = Supervision::read(&self.directory)?.map(|supervision| supervision.ports).unwrap_or_default();
        if !self.state()?.is_live() || !published.iter().any(|port| port.shown.guest_port == guest) {
            return Err(SuperviseError::Unknown(guest));
        }
        self.ask_supervisor(program, &Request::Unpublish { guest, host }).await
    }

    /// Starts the time to live again, for a sandbox that is started again after its end.
    pub(crate) fn restart_time(&self) -> Result<(), SuperviseError> {
        let Some(_lock) = SupervisorLock::try_take(&self.directory)? else { return Ok(()) };
        if let Some(mut supervision) = Supervision::read(&self.directory)? {
            supervision.restart_time()?;
            supervision.write(&self.directory)?;
        }
        Ok(())
    }

    fn ask_supervisor<'a>(
        &'a self,
        program: &'a SupervisorProgram,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Vec<PublishedPort>, SuperviseError>> {
        Box::pin(async move {
            let mut attempt = 1;
            loop {
                if !is_supervised(&self.directory)? {
                    if let Some(_lock) = SupervisorLock::try_take(&self.directory)?
                        && Supervision::read(&self.directory)?.is_none()
                    {
                        let has_network = NetworkRecord::exists(&self.directory);
                        let supervision = Supervision::of(&SupervisionSpec::default(), has_network)?;
                        supervision.with_shares(self.record.mounts.has_shares()).write(&self.directory)?;
                    }
                    self.start_supervisor(program).await?;
                }
                match talk::ask(&self.directory, request).await {
                    Ok(Reply::Done(ports)) => return Ok(ports),
                    Ok(Reply::Network(_) | Reply::Pins(_)) => return Err(self.lost("gave another answer")),
                    Ok(Reply::Failed(message)) => return Err(SuperviseError::Refused(message)),
                    // The supervisor may have been about to end or to start.
                    Err(_) if attempt < ATTEMPTS => tokio::time::sleep(Duration::from_millis(100)).await,
                    Err(error) => return Err(self.lost(&format!("does not answer ({error})"))),
                }
                attempt += 1;
            }
        })
    }

    /// Starts a supervisor and waits until it is ready.
    fn start_supervisor<'a>(&'a self, program: &'a SupervisorProgram) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(async move {
            let spawn = |source| SuperviseError::Spawn { program: program.program.clone(), source };
            let (ours, theirs) = StdUnixStream::pair().map_err(spawn)?;
            ours.set_nonblocking(true).map_err(spawn)?;
            self.spawn_supervisor(program, Stdio::from(OwnedFd::from(theirs)))?;
            let mut words = Vec::new();
            let ours = UnixStream::from_std(ours).map_err(spawn)?;
            let said = timeout(READY_WITHIN, AsyncReadExt::take(ours, MAX_WORDS).read_to_end(&mut words)).await;
            self.is_ready(said.ok().map(drop), &words)
        })
    }

    /// Judges what a supervisor wrote until it closed its stdout. `None` if it did not in time.
    fn is_ready(&self, said: Option<()>, words: &[u8]) -> Result<(), SuperviseError> {
        let words = String::from_utf8_lossy(words);
        match said {
            Some(()) if words == READY => Ok(()),
            Some(()) if !words.trim().is_empty() => Err(SuperviseError::Refused(words.trim().to_owned())),
            Some(()) => Err(self.lost("ended at once")),
            None => Err(self.lost(&format!("is not ready after {} s", READY_WITHIN.as_secs()))),
        }
    }

    fn spawn_supervisor(&self, program: &SupervisorProgram, stdout: Stdio) -> Result<(), SuperviseError> {
        let mut command = Command::new(&program.program);
        command.args(&program.arguments).arg(self.home.root()).arg(self.id().as_str());
        command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(stdout).stderr(log::open(&self.directory)?);
        let mut child =
            command.spawn().map_err(|source| SuperviseError::Spawn { program: program.program.clone(), source })?;
        // If this process lives as long, it reaps the child.
        thread::spawn(move || child.wait());
        Ok(())
    }

    fn lost(&self, what: &str) -> SuperviseError {
        SuperviseError::Lost { what: what.to_owned(), log: self.directory.path().join(LOG) }
    }
}
