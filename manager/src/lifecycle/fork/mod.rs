//! Live fork: makes running copies of a running sandbox. The VMM of the parent forks itself once
//! for each child and passes it the files that were created here. From then on each child is a
//! sandbox like any other.

mod child;
mod error;
mod inherited;
mod shares;

pub use error::ForkError;
pub(crate) use error::MAX_CHILDREN;
pub use inherited::Secrets;

use crate::{
    audit::Event,
    create::{parts::Parts, staged::Staged},
    guest::identity,
    home::{directory::SandboxDirectory, host, ids::new_id},
    limits::admission::{self, Request},
    mounts,
    record::SandboxRecord,
    sandbox::Sandbox,
    snapshot::{
        change::{Change, Running},
        flatten::flatten_when_long,
        lineage::{Files, Kind, Lineage, LineageError, Origin, free_name, share_disks},
    },
    supervision::{self, SupervisionSpec},
    vmm::{
        control::{ControlClient, ControlError},
        descriptors::LaunchFiles,
        end,
        group::{self, Group},
        lock,
        wire::WireError,
    },
    workspace,
};
use child::{Child, ChildFiles};
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use inherited::Inherited;
use sandboxvm_protocol::{
    ids::SandboxId,
    vmm::{ControlReply, ControlRequest, ForkReport, ForkRequest, MAX_FORK_CHILDREN},
};
use std::{
    num::NonZero,
    os::unix::net::UnixStream as StdUnixStream,
    thread,
    time::{Duration, Instant, SystemTime},
};
use tokio::time::{sleep, timeout};

/// Limit for one request to fork. A VMM needs about a millisecond for each child; the limit allows
/// for a host that swaps.
const FORKED_WITHIN: Duration = Duration::from_secs(60);
/// Time from the fork until the agent of a child has answered: what a restored machine gets, plus
/// this time for each of its siblings, with which it shares the host's CPUs.
const READY_WITHIN_EACH: Duration = Duration::from_secs(2);

/// What copies inherit beside what every copy has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// The secrets, the header rules and the login at the proxy of the sandbox.
    pub secrets: Secrets,
    /// The live shares of a sandbox that can write one. `None` refuses to fork it: copies have shares that are
    /// read-only anyway.
    pub shares: Option<SharesOfCopies>,
}

/// What copies have of live shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharesOfCopies {
    /// They can write what the sandbox can write: all of them see one directory.
    Same,
    /// They can only read.
    ReadOnly,
    /// Each has a copy of what the sandbox can write, as it is at the fork. It is removed with them.
    Copied,
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
        self.fork_with(count, Inheritance::default()).await
    }

    /// Makes copies as [`Self::fork`] does, which inherit more. The caller starts the network and the live shares
    /// of the copies by [`Self::supervise`].
    ///
    /// # Errors
    /// Every [`ForkError`]; no copy is left then.
    pub async fn fork_with(&self, count: u32, inheritance: Inheritance) -> Result<Forked, ForkError> {
        if !(1..=MAX_CHILDREN).contains(&count) {
            return Err(ForkError::Count(count));
        }
        if let Some(volume) = self.record.mounts.writable_volume() {
            return Err(ForkError::WritableVolume { sandbox: self.label(), volume: volume.clone() });
        }
        if self.record.mounts.has_shared_volume() {
            return Err(ForkError::SharedVolume(self.label()));
        }
        if let (None, Some(share)) = (inheritance.shares, self.record.mounts.writable_share()) {
            return Err(ForkError::WritableShare { sandbox: self.label(), path: share.path.to_owned() });
        }
        // Copies of copies would lose their files with the sandbox.
        if let (Some(SharesOfCopies::Same | SharesOfCopies::ReadOnly), Some(share)) =
            (inheritance.shares, self.record.mounts.copied_share())
        {
            return Err(ForkError::CopiedShare { sandbox: self.label(), at: share.at.clone() });
        }
        let forked = self.fork_all(count, inheritance).await;
        if let Err(error) = &forked {
            self.trail().note(Event::NotForked { copies: count, reason: error.to_string() });
        }
        forked
    }

    fn fork_all(&self, count: u32, inheritance: Inheritance) -> BoxFuture<'_, Result<Forked, ForkError>> {
        Box::pin(async move {
            let began = Instant::now();
            let change = Change::begin(self).await?;
            let SandboxRecord { memory_bytes: memory, disk_bytes, .. } = self.record;
            let mut running = change.running().await?;
            admission::foresee(&self.home, Request { count, memory, disk_bytes })?;
            let network = Inherited::of(self, inheritance.secrets).await?;
            let mounts = match inheritance.shares {
                Some(SharesOfCopies::ReadOnly) => self.record.mounts.clone().with_read_only_shares(),
                Some(SharesOfCopies::Copied) => self.record.mounts.clone().with_copied_shares(),
                Some(SharesOfCopies::Same) | None => self.record.mounts.clone(),
            };
            let basis = SandboxRecord { mounts, ..self.record.clone() };
            let mut children = Vec::new();
            let mut pauses = Vec::new();
            let mut left = count as usize;
            while left > 0 {
                let batch = left.min(MAX_FORK_CHILDREN);
                flatten_when_long(&mut running).await?;
                let (made, report) = self.fork_batch(&mut running, batch, &basis, network.as_ref()).await?;
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
        basis: &SandboxRecord,
        network: Option<&Inherited>,
    ) -> Result<(Vec<Child>, ForkReport), ForkError> {
        let mut children = Vec::with_capacity(count);
        let mut handed = Vec::with_capacity(count);
        for _ in 0..count {
            let (child, files) = self.stage_child(&running.lineage, running.control.speaks(), basis, network)?;
            children.push(child);
            handed.push(files);
        }
        let shares = self.hold_shares().await?;
        self.copy_shares(&children, &basis.mounts).await?;
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
        let reply = running.control.request_with(request, &sent, FORKED_WITHIN).await;
        // A VMM that has ended, as by the removal of this sandbox, makes no child any more.
        shares.release().await;
        let is_decided = reply.is_ok() || has_ended(&self.directory).await;
        children.iter_mut().for_each(|child| child.is_asked_for = !is_decided);
        let reply = reply?;
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
        basis: &SandboxRecord,
        network: Option<&Inherited>,
    ) -> Result<(Child, ChildFiles), ForkError> {
        let record = SandboxRecord {
            id: new_id()?,
            name: None,
            created_at: SystemTime::now(),
            ephemeral: false,
            ..basis.clone()
        };
        let staged = Staged::begin(&self.home, record)?;
        staged.admit()?;
        let directory = staged.directory();
        staged.record().write(directory)?;
        identity::make_due(directory)?;
        if let Some(network) = network {
            network.write(directory)?;
        }
        supervision::plan(directory, &SupervisionSpec::default(), basis.mounts.has_shares())?;
        let shared = lineage.files.disk.iter().chain(lineage.files.baseline.iter().flatten());
        for name in shared {
            directory.link_from(&self.directory, name, name)?;
        }
        share_disks(&self.directory, directory)?;
        workspace::mounting::inherit_due(directory, &self.directory)?;
        mounts::mounting::inherit_due(directory, &self.directory, &self.record)?;
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

/// Returns true if the VMM of a directory releases its lock soon, or the directory is gone.
async fn has_ended(directory: &SandboxDirectory) -> bool {
    let released = async {
        loop {
            match lock::try_exclude_vmm(directory) {
                Ok(Some(_)) => return true,
                Ok(None) => sleep(end::POLL).await,
                Err(_) => return false,
            }
        }
    };
    timeout(end::NOTICE_WITHIN, released).await.unwrap_or(false)
}

/// Number of children that are started at the same time: enough to keep the CPUs busy. With more,
/// each would only wait longer for its turn.
fn begun_at_once() -> usize {
    2 * thread::available_parallelism().map_or(1, NonZero::get)
}
