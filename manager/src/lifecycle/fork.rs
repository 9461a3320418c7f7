//! Live fork: makes running copies of a running sandbox. The VMM of the parent forks itself once
//! for each child and passes it the files that were created here. From then on each child is a
//! sandbox like any other.

use crate::{
    audit::{self, AuditError, Event},
    create::{
        parts::{self, Parts},
        staged::Staged,
    },
    discard,
    guest::{
        connection::agent::{AgentConnection, AgentError},
        error::ExecError,
        identity,
        in_use::InUseError,
        silence::{Silence, SilentPart},
    },
    home::{
        directory::{DirectoryError, SandboxDirectory},
        host,
        ids::new_id,
        names::NameError,
    },
    limits::{
        admission::{self, AdmissionError, Request},
        cpu_share,
    },
    network::{pins::KeptPins, proxy::ProxySpec, record::NetworkRecord, secrets::Kept},
    record::{RecordError, SandboxRecord},
    sandbox::Sandbox,
    snapshot::{
        change::{Change, ChangeError, Running},
        flatten::{FlattenError, flatten_when_long},
        lineage::{Files, Kind, Lineage, LineageError, Origin, free_name, share_disks},
    },
    supervision::{self, SuperviseError, SupervisionSpec},
    vmm::{
        control::{ControlClient, ControlError},
        descriptors::LaunchFiles,
        family,
        group::{self, Group},
        lock,
        state::{self, State},
        wire::WireError,
    },
    workspace,
};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use sandboxvm_protocol::{
    ids::SandboxId,
    vmm::{ChildDevice, ControlReply, ControlRequest, ForkChild, ForkReport, ForkRequest, MAX_FORK_CHILDREN, VmmEvent},
};
use std::{
    fs::File,
    io,
    num::NonZero,
    os::unix::net::UnixStream as StdUnixStream,
    thread,
    time::{Duration, Instant, SystemTime},
};
use tokio::time::timeout;

/// Limit for one request to fork. A VMM needs about a millisecond for each child; the limit allows
/// for a host that swaps.
const FORKED_WITHIN: Duration = Duration::from_secs(60);
/// Time from the fork until the agent of a child has answered: what a restored machine gets, plus
/// this time for each of its siblings, with which it shares the host's CPUs.
const READY_WITHIN_EACH: Duration = Duration::from_secs(2);
/// The VMM of a guest in which no process listens refuses a connection sooner than this. If the
/// refusal took longer, the guest lacked the CPU time to answer, among many busy ones, for as long
/// as its VMM waits.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// Maximum number of copies in one fork: more than any host can hold.
pub(crate) const MAX_CHILDREN: u32 = 10_000;

/// Why a sandbox was not forked. The sandbox keeps running, and no child is left.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The number of copies is out of range.
    #[error("invalid number of copies {0}: must be between 1 and {MAX_CHILDREN}")]
    Count(u32),
    /// Only a running sandbox can be forked.
    #[error("cannot fork sandbox {sandbox}: it is {state}, and only a running sandbox can be forked")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: State,
    },
    /// The host does not have room for the copies.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// The VMM of the sandbox refused the request or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The machine of a child did not start.
    #[error("a copy did not start: {0}")]
    Child(ControlError),
    /// A child did not accept its identity.
    #[error("cannot give a copy its identity: {0}")]
    Identity(Box<ExecError>),
    /// A child took too long to answer.
    #[error("a copy was not ready within {} s", .0.as_secs())]
    NotReady(Duration),
    /// The VMM of a child is still in the control group of its parent.
    #[error(
        "cannot move a copy into its own control group; without one it would end with the sandbox of which it is a copy"
    )]
    Group,
    /// The disk of the sandbox cannot have another layer.
    #[error("{0}")]
    Flatten(#[from] FlattenError),
    /// The lineage of the sandbox cannot be read or written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The record of a child cannot be written.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// The directory of a child cannot be created.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The audit log cannot be written, so the fork was not done.
    #[error("{0}")]
    Audit(#[from] AuditError),
    /// The network of a child cannot be written down.
    #[error("{0}")]
    Services(#[from] SuperviseError),
    /// The system provided no randomness or no socket.
    #[error("cannot create a copy: {0}")]
    Io(#[from] io::Error),
}

impl From<ChangeError> for ForkError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotRunning { sandbox, state } => Self::NotRunning { sandbox, state },
            ChangeError::Idle(error) => Self::Idle(error),
            ChangeError::Control(error) => Self::Control(error),
            ChangeError::Lineage(error) => Self::Lineage(error),
            ChangeError::Directory(error) => Self::Directory(error),
        }
    }
}

/// The copies that a fork made.
#[derive(Debug)]
pub struct Forked {
    /// The new sandboxes.
    pub copies: Vec<Sandbox>,
    /// How long the sandbox was paused, for each request to its VMM.
    pub pauses: Vec<Duration>,
    /// Time from the call until the last copy was ready to run: the work of the host, without any
    /// work of a guest.
    pub made: Duration,
}

impl Sandbox {
    /// Returns the sandbox that this one was forked from, if it is a fork.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn forked_from(&self) -> Result<Option<SandboxId>, LineageError> {
        Ok(match Lineage::peek(&self.directory)?.origin {
            Origin::Fork { of } => Some(of),
            Origin::Boot | Origin::Snapshot { .. } => None,
        })
    }

    /// Makes `count` running copies. All copies that one request to the VMM makes (24) are of the
    /// same moment. Each has received its own identity. Dropping the future removes the copies that
    /// were made.
    ///
    /// # Errors
    /// Every [`ForkError`]; no copy is left then.
    pub async fn fork(&self, count: u32) -> Result<Forked, ForkError> {
        self.fork_with(count, Secrets::Left).await
    }

    /// Makes copies as [`Self::fork`] does, which have the secrets, the header rules and the login at the proxy of
    /// this sandbox too.
    ///
    /// # Errors
    /// Every [`ForkError`]; no copy is left then.
    pub async fn fork_with_secrets(&self, count: u32) -> Result<Forked, ForkError> {
        self.fork_with(count, Secrets::Inherited).await
    }

    async fn fork_with(&self, count: u32, secrets: Secrets) -> Result<Forked, ForkError> {
        if !(1..=MAX_CHILDREN).contains(&count) {
            return Err(ForkError::Count(count));
        }
        let forked = self.fork_all(count, secrets).await;
        if let Err(error) = &forked {
            self.trail().note(Event::NotForked { copies: count, reason: error.to_string() });
        }
        forked
    }

    fn fork_all(&self, count: u32, secrets: Secrets) -> BoxFuture<'_, Result<Forked, ForkError>> {
        Box::pin(async move {
            let began = Instant::now();
            let change = Change::begin(self).await?;
            let SandboxRecord { memory_bytes: memory, disk_bytes, .. } = self.record;
            let mut running = change.running().await?;
            admission::foresee(&self.home, Request { count, memory, disk_bytes })?;
            let network = Inherited::of(self, secrets).await?;
            let mut children = Vec::new();
            let mut pauses = Vec::new();
            let mut left = count as usize;
            while left > 0 {
                let batch = left.min(MAX_FORK_CHILDREN);
                flatten_when_long(&mut running).await?;
                let (made, report) = self.fork_batch(&mut running, batch, network.as_ref()).await?;
                children.extend(made);
                pauses.push(Duration::from_nanos(report.pause_ns));
                left -= batch;
            }
            drop(running);
            let _in_use = change.end();
            // No child runs before all are made: a running guest would take the CPU time that making
            // its siblings needs.
            for child in &mut children {
                child.enclose(&self.directory).await?;
                child.built().await?;
            }
            let made = began.elapsed();
            let within = host::restored_agent_answers_within() + READY_WITHIN_EACH * count;
            let parent = &self.record.id;
            stream::iter(&mut children)
                .map(Ok)
                .try_for_each_concurrent(begun_at_once(), |child| async move {
                    timeout(within, child.begin()).await.map_err(|_| ForkError::NotReady(within))??;
                    child.announce(parent).await
                })
                .await?;
            let copies: Vec<Sandbox> = children.into_iter().map(Child::let_go).collect();
            self.trail().note(Event::Forked { copies: copies.iter().map(|copy| copy.record.id.clone()).collect() });
            let home = self.home.clone();
            tokio::task::spawn_blocking(move || group::pool::fill(&home));
            Ok(Forked { copies, pauses, made })
        })
    }

    async fn fork_batch(
        &self,
        running: &mut Running<'_>,
        count: usize,
        network: Option<&Inherited>,
    ) -> Result<(Vec<Child>, ForkReport), ForkError> {
        let mut children = Vec::with_capacity(count);
        let mut handed = Vec::with_capacity(count);
        for _ in 0..count {
            let (child, files) = self.stage_child(&running.lineage, running.control.speaks(), network)?;
            children.push(child);
            handed.push(files);
        }
        let top_name = free_name(&self.directory, Kind::Disk)?;
        let top = self.directory.create_file(&top_name)?;
        let mut disk = running.lineage.files.disk.clone();
        disk.push(top_name.clone());
        let next = Files { disk, baseline: running.lineage.files.baseline.clone() };
        running.announce(next.clone(), &top_name)?;
        let mut sent = LaunchFiles::default();
        let request = ControlRequest::Fork(ForkRequest {
            disk_tops: vec![sent.add(&top)],
            children: children.iter().zip(&handed).map(|(child, files)| files.request(child, &mut sent)).collect(),
        });
        children.iter_mut().for_each(|child| child.is_asked_for = true);
        let reply = running.control.request_with(request, &sent, FORKED_WITHIN).await?;
        children.iter_mut().for_each(|child| child.is_asked_for = false);
        // This also closes our copies of the locks: from here on only the children hold them.
        drop(handed);
        match reply {
            Ok(ControlReply::Fork(report)) => {
                // If the disk has no room for the record, the announcement in the lineage says the
                // same.
                let _ = running.complete(next);
                Ok((children, report))
            }
            Err(refusal) => {
                running.conclude();
                Err(ControlError::from(refusal).into())
            }
            Ok(_) => Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
        }
    }

    /// Creates the directory of a child, with links to all files that it continues from, and the
    /// files that its VMM receives. Like its parent, that VMM speaks `version`.
    fn stage_child(
        &self,
        lineage: &Lineage,
        version: u8,
        network: Option<&Inherited>,
    ) -> Result<(Child, ChildFiles), ForkError> {
        let record = SandboxRecord {
            id: new_id()?,
            name: None,
            created_at: SystemTime::now(),
            ephemeral: false,
            ..self.record.clone()
        };
        let staged = Staged::begin(&self.home, record)?;
        staged.admit()?;
        let directory = staged.directory();
        staged.record().write(directory)?;
        identity::make_due(directory)?;
        if let Some(network) = network {
            network.write(directory)?;
        }
        let shared = lineage.files.disk.iter().chain(lineage.files.baseline.iter().flatten());
        for name in shared {
            directory.link_from(&self.directory, name, name)?;
        }
        share_disks(&self.directory, directory)?;
        workspace::mounting::inherit_due(directory, &self.directory)?;
        let top_name = free_name(directory, Kind::Disk)?;
        let top = directory.create_file(&top_name)?;
        let disk = lineage.files.disk.iter().cloned().chain([top_name]).collect();
        let files = Files { disk, baseline: lineage.files.baseline.clone() };
        let origin = Origin::Fork { of: self.record.id.clone() };
        Lineage::new(lineage.contents.clone(), origin, lineage.parent.clone(), files)
            .with_seals(lineage.seals.clone())
            .write(directory)?;
        let parts = Parts::make(directory)?;
        let group = Group::take(&self.home, directory)?;
        let (ours, theirs) = StdUnixStream::pair()?;
        // The directory is published before the VMM runs: a VMM must never live in a directory that
        // a sweep may remove.
        let child = Child {
            sandbox: Some(staged.publish()?),
            channel: ControlClient::over_signed(ours)?.speaking(version),
            group,
            is_asked_for: false,
        };
        Ok((child, ChildFiles { parts, top, launcher: theirs }))
    }
}

/// Number of children that are started at the same time: enough to keep the CPUs busy. With more,
/// each would only wait longer for its turn.
fn begun_at_once() -> usize {
    2 * thread::available_parallelism().map_or(1, NonZero::get)
}

/// The network that children inherit: what the sandbox may reach, and the answers that its guest got.
/// Each child gets separate processes.
struct Inherited {
    record: NetworkRecord,
    kept: Kept,
    pins: KeptPins,
}

/// Whether children have the secrets and header rules of their parent, and its login at the proxy. Otherwise its processes have
/// placeholders of which no process knows the secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Left,
    Inherited,
}

impl Inherited {
    async fn of(sandbox: &Sandbox, secrets: Secrets) -> Result<Option<Self>, RecordError> {
        let Some(mut record) = NetworkRecord::read(&sandbox.directory)? else { return Ok(None) };
        let kept = match secrets {
            Secrets::Inherited => Kept::read(&sandbox.directory)?,
            Secrets::Left => {
                record.settings.secrets.clear();
                record.settings.header_rules.clear();
                // Not the proxy itself: without it, connections would go another way.
                record.settings.proxy = record.settings.proxy.map(ProxySpec::without_login);
                Kept::default()
            }
        };
        Ok(Some(Self { record, kept, pins: KeptPins::of(sandbox.network_pins(false).await) }))
    }

    fn write(&self, directory: &SandboxDirectory) -> Result<(), ForkError> {
        self.kept.write(directory)?;
        self.record.write(directory)?;
        self.pins.write(directory)?;
        Ok(supervision::plan(directory, &SupervisionSpec::default())?)
    }
}

/// The files that the VMM of a child receives.
struct ChildFiles {
    parts: Parts,
    top: File,
    launcher: StdUnixStream,
}

impl ChildFiles {
    fn request<'a>(&'a self, child: &Child, files: &mut LaunchFiles<'a>) -> ForkChild {
        let parts = &self.parts;
        ForkChild {
            sandbox: child.sandbox().record.id.clone(),
            launcher: files.add(&self.launcher),
            devices: vec![
                ChildDevice::Block { top: files.add(&self.top) },
                ChildDevice::Vsock { listener: files.add(&parts.vsock) },
            ],
            console: files.add(&parts.console),
            log: files.add(&parts.vmm_log),
            control: files.add(&parts.control),
            status: files.add(&parts.status),
            lock: files.add(&parts.lock),
            tie_to_launcher: true,
        }
    }
}

/// A child whose VMM exists or is about to. The VMM is tied to this process until the child is
/// announced. Dropping the value ends the VMM immediately and removes the sandbox.
struct Child {
    sandbox: Option<Sandbox>,
    channel: ControlClient,
    /// The control group, which is linked from the child's directory; the VMM is moved into it.
    group: Option<Group>,
    /// True while the parent's VMM may be about to make the child: then the parent holds the
    /// child's lock for a moment.
    is_asked_for: bool,
}

impl Child {
    fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("taken only by let_go, which consumes self")
    }

    /// Waits until the machine of the child is built.
    async fn built(&mut self) -> Result<(), ForkError> {
        match self.channel.next_event().await.map_err(ControlError::from) {
            Ok(VmmEvent::Ended(reason)) => Err(ForkError::Child(ControlError::Ended(reason))),
            Ok(VmmEvent::Phase(_)) => Ok(()),
            Err(error) => Err(ForkError::Child(error)),
        }
    }

    /// Starts the guest and gives it its identity.
    async fn begin(&mut self) -> Result<(), ForkError> {
        self.channel.ask(ControlRequest::Start).await.map_err(ForkError::Child)?;
        self.channel.ready().await.map_err(ForkError::Child)?;
        loop {
            let asked = Instant::now();
            match AgentConnection::settle(&self.sandbox().directory, &self.sandbox().record).await {
                Ok(()) => return Ok(()),
                Err(AgentError::NotListening) if asked.elapsed() > REFUSED_WITHIN => {}
                Err(AgentError::Silent(Silence { part: SilentPart::Agent, .. })) => {}
                Err(error) => return Err(ForkError::Identity(Box::new(self.sandbox().explain(error).await))),
            }
        }
    }

    /// Announces the child in the audit log and unties its VMM: from here on it lives without this
    /// process.
    async fn announce(&mut self, parent: &SandboxId) -> Result<(), ForkError> {
        let copy = self.sandbox();
        copy.trail().append(Event::created(&copy.record, audit::Origin::Fork(parent.clone())))?;
        self.channel.ask(ControlRequest::Untie).await.map_err(ForkError::Child)
    }

    /// Waits for the child's process, which starts in the control group of its parent, and moves it
    /// into its own group before its guest runs; otherwise it would end with its parent. The kernel
    /// reports which process it is: a parent that was taken over can at most make another process
    /// of its own end with this child.
    async fn enclose(&mut self, parent: &SandboxDirectory) -> Result<(), ForkError> {
        let vmm = self.channel.sender().await.map_err(ForkError::Child)?;
        let Sandbox { home: _, directory, record } = self.sandbox();
        let has_share = self.group.as_ref().is_some_and(|group| parts::bound(group, record));
        let is_in_group = self.group.as_ref().is_some_and(|group| group.admit(vmm.pid).is_ok());
        if !is_in_group {
            if Group::of(parent).is_some() {
                return Err(ForkError::Group);
            }
            family::write_down(directory, vmm.pid, true)?;
            if Group::release(directory) {
                directory.unlink(group::LINK)?;
            }
        }
        Ok(cpu_share::hold(
            directory,
            &record.id,
            record.memory_bytes,
            record.limits.cpu_share,
            vmm.pid,
            has_share && is_in_group,
        )?)
    }

    fn let_go(mut self) -> Sandbox {
        self.sandbox.take().expect("taken only here")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A child that was requested and has no reply yet may start at any moment. It stays, as a
        // sandbox or as a dead one.
        if let Some(Sandbox { home, directory, record }) = self.sandbox.take()
            && !self.is_asked_for
        {
            kill(&directory);
            // Ends the processes in the child's group. The caller has a better error to report; a
            // sweep removes what stays.
            let _ = discard::discard(&home, directory, &record.id, None);
        }
    }
}

fn kill(directory: &SandboxDirectory) {
    let hint = state::status(directory).ok().flatten().map(|status| status.pid);
    // The lock is free if the VMM never took it.
    if matches!(lock::try_exclude_vmm(directory), Ok(None))
        && let Some(vmm) = lock::find_holder(directory, hint)
    {
        // ESRCH: the process has ended meanwhile.
        let _ = vmm.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manager::tests::manager_with,
        network::{operator::NetworkOperator, spec::NetworkSpec},
    };

    #[tokio::test]
    async fn copy_has_the_proxy_and_its_password_only_with_secrets() {
        let (_home, manager) = manager_with(&["abcdefgh", "copyaaaa"]);
        let [parent, copy] = ["abcdefgh", "copyaaaa"].map(|id| manager.find(id).unwrap());
        let proxy = Some("socks5://me:hush@proxy.example:1080".parse().unwrap());
        let spec = NetworkSpec { proxy, ..NetworkSpec::default() };
        let mut record = NetworkRecord::of(&NetworkOperator::default(), &spec).unwrap();
        record.keep_values(&parent.directory).unwrap();
        record.write(&parent.directory).unwrap();
        for (secrets, user) in [(Secrets::Left, None), (Secrets::Inherited, Some("me"))] {
            let inherited = Inherited::of(&parent, secrets).await.unwrap().unwrap();
            inherited.write(&copy.directory).unwrap();
            let upstream = copy.upstream_proxy().unwrap().unwrap();
            assert_eq!((upstream.host.as_str(), upstream.user.as_deref()), ("proxy.example", user));
            let kept = copy.directory.read("network.secrets", 1 << 20).unwrap_or_default();
            assert_eq!(String::from_utf8(kept).unwrap().contains("hush"), user.is_some());
        }
    }
}
