//! Live fork: running copies of a running sandbox. The parent's VMM forks itself once for each child and hands it the
//! files that were made here; each child is a sandbox like any other from then on.

use crate::{
    admission::{self, AdmissionError, Request},
    agent::AgentError,
    audit::{self, AuditError, Event},
    control::{ControlClient, ControlError},
    cpu_share,
    directory::{DirectoryError, SandboxDirectory},
    family,
    flatten::FlattenError,
    group::{self, Group},
    host, identity,
    in_use::{InUse, InUseError},
    launch::LaunchFiles,
    lineage::{ChangeLock, Files, Kind, Lineage, LineageError, Origin, free_name, share_disks},
    lock,
    names::NameError,
    parts::{self, Parts},
    record::{RecordError, SandboxRecord},
    remove,
    sandbox::{ExecError, Sandbox},
    silence::{Silence, SilentPart},
    staged::{Staged, new_id},
    state::{self, State},
    wire::WireError,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use sandboxvm_protocol::{
    identity::SandboxId,
    vmm::{ControlReply, ControlRequest, ForkChild, ForkReport, ForkRequest, MAX_FORK_CHILDREN, VmmEvent},
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

/// A VMM forks in a millisecond a child; this is for a host that swaps.
const FORKED_WITHIN: Duration = Duration::from_secs(60);
/// From the fork until a child's agent has answered: what a restored one has, and so much more for each of its siblings,
/// with which it shares the host's CPUs.
const READY_WITHIN_EACH: Duration = Duration::from_secs(2);
/// A guest in which nobody listens says so sooner. One that took longer had not the CPU to answer, among many busy ones,
/// for as long as its VMM waits.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// More than any host could hold.
pub(crate) const MAX_CHILDREN: u32 = 10_000;

/// Why a sandbox was not forked. It runs on, and no child is left.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// Not a number of children.
    #[error("invalid number of copies {0}: must be between 1 and {MAX_CHILDREN}")]
    Count(u32),
    /// The sandbox does not run.
    #[error("cannot fork sandbox {sandbox}: it is {state}, and only a running sandbox can be forked")]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: State,
    },
    /// The host cannot take so many.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// Its VMM refused or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// A child did not come to life.
    #[error("a copy did not start: {0}")]
    Child(ControlError),
    /// A child did not take its identity.
    #[error("cannot give a copy its identity: {0}")]
    Identity(Box<ExecError>),
    /// A child took too long.
    #[error("a copy was not ready within {} s", .0.as_secs())]
    NotReady(Duration),
    /// A child is in the control group of its parent.
    #[error(
        "cannot move a copy into its own control group; without one it would end with the sandbox of which it is a copy"
    )]
    Group,
    /// Its disk cannot take another layer.
    #[error("{0}")]
    Flatten(#[from] FlattenError),
    /// The sandbox's own record.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// A child's record.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// A child's directory.
    #[error("{0}")]
    Name(#[from] NameError),
    /// It was paused because nobody used it, and does not go on.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// What cannot be logged is not done.
    #[error("{0}")]
    Audit(#[from] AuditError),
    /// The system gave no randomness or no socket.
    #[error("cannot create a copy: {0}")]
    Io(#[from] io::Error),
}

/// Copies that were made.
#[derive(Debug)]
pub struct Forked {
    /// The copies.
    pub copies: Vec<Sandbox>,
    /// How long the sandbox stood still, in each of the requests it took.
    pub pauses: Vec<Duration>,
    /// From the call until the last copy stood ready to run: the host's own work, with nothing of a copy's guest.
    pub made: Duration,
}

impl Sandbox {
    /// The sandbox that it is a copy of, when it is one.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn forked_from(&self) -> Result<Option<SandboxId>, LineageError> {
        Ok(match Lineage::read(&self.directory)?.origin {
            Origin::Fork { of } => Some(of),
            Origin::Boot | Origin::Snapshot { .. } => None,
        })
    }

    /// Makes `count` running copies, all of the same moment as far as one request to the VMM reaches (24 copies). Each
    /// was told its own identity. Dropping the future takes back what was made.
    ///
    /// # Errors
    /// Every [`ForkError`]; no copy is left then.
    pub async fn fork(&self, count: u32) -> Result<Forked, ForkError> {
        if !(1..=MAX_CHILDREN).contains(&count) {
            return Err(ForkError::Count(count));
        }
        let forked = self.fork_all(count).await;
        if let Err(error) = &forked {
            self.trail().note(Event::NotForked { copies: count, reason: error.to_string() });
        }
        forked
    }

    async fn fork_all(&self, count: u32) -> Result<Forked, ForkError> {
        let began = Instant::now();
        let _in_use = InUse::begin(&self.directory).await?;
        let change = ChangeLock::take(&self.directory).await?;
        let state = self.state()?;
        if !state.is_live() {
            return Err(ForkError::NotRunning { sandbox: self.label(), state });
        }
        let SandboxRecord { memory_bytes: memory, disk_bytes, .. } = self.record;
        admission::foresee(&self.home, Request { count, memory, disk_bytes })?;
        let mut control = self.control().await?;
        // See `Lineage::read`.
        control.stats().await?;
        let mut lineage = Lineage::read(&self.directory)?;
        let mut children = Vec::new();
        let mut pauses = Vec::new();
        let mut left = count as usize;
        while left > 0 {
            let batch = left.min(MAX_FORK_CHILDREN);
            self.flatten_when_long(&mut control, &mut lineage).await?;
            let (made, report) = self.fork_batch(&mut control, &mut lineage, batch).await?;
            children.extend(made);
            pauses.push(Duration::from_nanos(report.pause_ns));
            left -= batch;
        }
        drop(change);
        // None runs before all are made: a running guest would take the CPU that its siblings are made with.
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
    }

    async fn fork_batch(
        &self,
        control: &mut ControlClient,
        lineage: &mut Lineage,
        count: usize,
    ) -> Result<(Vec<Child>, ForkReport), ForkError> {
        let mut children = Vec::with_capacity(count);
        let mut handed = Vec::with_capacity(count);
        for _ in 0..count {
            let (child, files) = self.stage_child(lineage)?;
            children.push(child);
            handed.push(files);
        }
        let top_name = free_name(&self.directory, Kind::Disk)?;
        let top = self.directory.create_file(&top_name)?;
        let mut disk = lineage.files.disk.clone();
        disk.push(top_name.clone());
        let next = Files { disk, baseline: lineage.files.baseline.clone() };
        if let Err(error) = lineage.announce(&self.directory, next.clone()) {
            // On a full disk: the VMM was not asked for anything yet. A file that stays is taken away by the next change.
            let _ = self.directory.unlink(&top_name);
            return Err(error.into());
        }
        let mut sent = LaunchFiles::default();
        let request = ControlRequest::Fork(ForkRequest {
            disk_tops: vec![sent.add(&top)],
            children: children.iter().zip(&handed).map(|(child, files)| files.request(child, &mut sent)).collect(),
        });
        children.iter_mut().for_each(|child| child.is_asked_for = true);
        let reply = control.request_with(&request, &sent, FORKED_WITHIN).await?;
        children.iter_mut().for_each(|child| child.is_asked_for = false);
        // With our copies of the locks: from here on they are the children's alone.
        drop(handed);
        match reply {
            ControlReply::Fork(report) => {
                // Where the disk has no room for the record, the one that announced this says the same.
                let _ = lineage.complete(&self.directory, next);
                Ok((children, report))
            }
            ControlReply::Failed { message } => {
                // Where this cannot be written down, what was announced is judged again next time.
                let _ = lineage.conclude(&self.directory);
                Err(ControlError::Refused(message).into())
            }
            _ => Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
        }
    }

    /// A child's directory, with links to all that it goes on from, and the files that its VMM is handed.
    fn stage_child(&self, lineage: &Lineage) -> Result<(Child, ChildFiles), ForkError> {
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
        let shared = lineage.files.disk.iter().chain(lineage.files.baseline.iter().flatten());
        for name in shared {
            directory.link_from(&self.directory, name, name)?;
        }
        share_disks(&self.directory, directory)?;
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
        // Seen before it runs: a VMM must never live on in a directory that a sweep may take.
        let child = Child {
            sandbox: Some(staged.publish()?),
            channel: ControlClient::over_signed(ours)?,
            group,
            is_asked_for: false,
        };
        Ok((child, ChildFiles { parts, top, launcher: theirs }))
    }
}

/// Children that are begun at the same time: enough to keep the CPUs busy. With more, each would only wait longer for its turn.
fn begun_at_once() -> usize {
    2 * thread::available_parallelism().map_or(1, NonZero::get)
}

/// What a child's VMM is handed.
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
            disk_tops: vec![files.add(&self.top)],
            vsock: files.add(&parts.vsock),
            console: files.add(&parts.console),
            log: files.add(&parts.vmm_log),
            control: files.add(&parts.control),
            status: files.add(&parts.status),
            lock: files.add(&parts.lock),
            tie_to_launcher: true,
        }
    }
}

/// A child whose VMM exists or is about to, and ends with this process until it is announced; dropping it ends it at once
/// and removes the sandbox.
struct Child {
    sandbox: Option<Sandbox>,
    channel: ControlClient,
    /// Written down in its directory; its VMM is moved into it.
    group: Option<Group>,
    /// The parent's VMM may be about to make it: then its lock is, for a moment, held by the parent.
    is_asked_for: bool,
}

impl Child {
    fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("taken only by let_go, which consumes self")
    }

    /// Waits for its machine to be there.
    async fn built(&mut self) -> Result<(), ForkError> {
        match self.channel.next_event().await.map_err(ControlError::from) {
            Ok(VmmEvent::Ended(reason)) => Err(ForkError::Child(ControlError::Ended(reason))),
            Ok(VmmEvent::Phase(_)) => Ok(()),
            Err(error) => Err(ForkError::Child(error)),
        }
    }

    /// Lets it run and tells it who it is.
    async fn begin(&mut self) -> Result<(), ForkError> {
        self.channel.ask(ControlRequest::Start).await.map_err(ForkError::Child)?;
        self.channel.ready().await.map_err(ForkError::Child)?;
        loop {
            let asked = Instant::now();
            match identity::settle(&self.sandbox().directory, &self.sandbox().record).await {
                Ok(()) => return Ok(()),
                Err(AgentError::NotListening) if asked.elapsed() > REFUSED_WITHIN => {}
                Err(AgentError::Silent(Silence { part: SilentPart::Agent, .. })) => {}
                Err(error) => return Err(ForkError::Identity(Box::new(self.sandbox().explain(error).await))),
            }
        }
    }

    /// From here on it lives without us.
    async fn announce(&mut self, parent: &SandboxId) -> Result<(), ForkError> {
        let copy = self.sandbox();
        copy.trail().append(Event::created(&copy.record, audit::Origin::Fork(parent.clone())))?;
        self.channel.ask(ControlRequest::Untie).await.map_err(ForkError::Child)
    }

    /// Waits for its process, which was born into its parent's control group, and moves it into its own before its guest runs:
    /// it would end with its parent. Which process it is, the kernel says: a parent that was taken over can at most have
    /// another of its own end with this child.
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
        Ok(cpu_share::hold(directory, record, vmm.pid, has_share && is_in_group)?)
    }

    fn let_go(mut self) -> Sandbox {
        self.sandbox.take().expect("taken only here")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // One that is asked for and not answered about may come to life any moment: it stays, a sandbox or a dead one.
        if let Some(Sandbox { home, directory, record }) = self.sandbox.take()
            && !self.is_asked_for
        {
            kill(&directory);
            // Ends what is in its own group. The caller has a better error to report; a sweep takes what stays.
            let _ = remove::discard(&home, directory, &record.id, None);
        }
    }
}

fn kill(directory: &SandboxDirectory) {
    let hint = state::status(directory).ok().flatten().map(|status| status.pid);
    // Free where the VMM never took it.
    if matches!(lock::try_exclude_vmm(directory), Ok(None))
        && let Some(vmm) = lock::find_holder(directory, hint)
    {
        // ESRCH: it went meanwhile.
        let _ = vmm.kill();
    }
}
