//! Resets a sandbox to its beginning or to a snapshot. The VMM resets the machine in place if it
//! started from that very snapshot; otherwise the VMM is replaced. Directory, ID and name stay in
//! both cases.
//!
//! ```text
//! in_place  the VMM resets its machine      replaced  another VMM takes its place
//! ```

mod error;
mod in_place;
mod replaced;

pub use error::ResetError;

use crate::{
    audit::Event,
    guest::{authority, identity},
    home::host,
    limits::admission,
    mounts,
    sandbox::Sandbox,
    snapshot::change::{Change, Running},
    snapshot::{
        lineage::{Lineage, Origin},
        store::StoredSnapshot,
    },
    workspace,
};
use futures_util::future::BoxFuture;
use replaced::Found;
use sandboxvm_images::bundle::Bundle;
use sandboxvm_protocol::{ids::SandboxName, vmm::ResetReport};
use std::time::Duration;
use tokio::time::timeout;

/// How a sandbox was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetDone {
    /// The VMM reset the machine.
    InPlace(ResetReport),
    /// Another VMM replaced the one of the sandbox.
    Replaced,
}

/// Whether a sandbox that is paused to disk may be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parked {
    Allowed,
    Refused,
}

/// What a sandbox is reset to.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// The state it started from.
    Beginning,
    Snapshot(&'a SandboxName),
    /// Its own disk as it is, without memory.
    OwnDisk,
}

/// The current files of the sandbox, with its VMM if it runs.
enum Composition<'s> {
    Running(Box<Running<'s>>),
    AtRest(Box<Lineage>),
}

impl Composition<'_> {
    fn lineage(&self) -> &Lineage {
        match self {
            Self::Running(running) => &running.lineage,
            Self::AtRest(lineage) => lineage,
        }
    }
}

impl Sandbox {
    /// Resets memory, disk and processes: to `snapshot`, or without one to where the sandbox
    /// started. A sandbox that does not run is started again. Open connections are closed. Calls
    /// `is_running` before the guest mounts anything: the caller must start a supervisor then, without
    /// which nothing can be mounted in a live share.
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn reset(
        &self,
        bundle: &Bundle,
        snapshot: Option<&SandboxName>,
        boot_timeout: Duration,
        is_running: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        let to = snapshot.map_or(Place::Beginning, Place::Snapshot);
        let host_is_done = Box::new(|| ());
        self.put_back(bundle, to, boot_timeout, Parked::Refused, host_is_done, Box::new(is_running)).await
    }

    /// Resumes a sandbox that is paused to disk (see [`Self::park`]) from the snapshot that was
    /// taken when it was paused. Calls `host_is_done` as soon as only the guest remains to be
    /// waited for: the caller must not hold anything that others share from then on, because a
    /// guest can take as long as it wants.
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn resume_from(
        &self,
        bundle: &Bundle,
        snapshot: &SandboxName,
        boot_timeout: Duration,
        host_is_done: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        let (to, host_is_done) = (Place::Snapshot(snapshot), Box::new(host_is_done));
        self.put_back(bundle, to, boot_timeout, Parked::Allowed, host_is_done, Box::new(|| ())).await
    }

    /// Boots a sandbox that is paused to disk from its own disk, as it was left: memory and
    /// processes are lost. `host_is_done` is called as in [`Self::resume_from`].
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn resume_from_disk(
        &self,
        bundle: &Bundle,
        boot_timeout: Duration,
        host_is_done: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        let (to, host_is_done) = (Place::OwnDisk, Box::new(host_is_done));
        self.put_back(bundle, to, boot_timeout, Parked::Allowed, host_is_done, Box::new(|| ())).await
    }

    fn put_back<'a>(
        &'a self,
        bundle: &'a Bundle,
        to: Place<'a>,
        boot_timeout: Duration,
        parked: Parked,
        host_is_done: Box<dyn FnOnce() + Send + 'a>,
        is_running: Box<dyn FnOnce() + Send + 'a>,
    ) -> BoxFuture<'a, Result<ResetDone, ResetError>> {
        Box::pin(async move {
            let snapshot = match to {
                Place::Snapshot(name) => Some(name),
                Place::Beginning | Place::OwnDisk => None,
            };
            let named = snapshot.map(|name| StoredSnapshot::named(&self.home, name)).transpose()?;
            let change = Change::begin(self).await?;
            if parked == Parked::Refused && self.is_parked() {
                return Err(ResetError::Parked(self.label()));
            }
            let mut composition = if self.state()?.is_live() {
                Composition::Running(Box::new(change.running().await?))
            } else {
                Composition::AtRest(Box::new(change.lineage_at_rest()?))
            };
            let lineage = composition.lineage();
            let began_from = match &lineage.origin {
                Origin::Snapshot { id, .. } if !lineage.rebooted => Some(id.clone()),
                Origin::Snapshot { .. } | Origin::Boot | Origin::Fork { .. } => None,
            };
            let named = named.filter(|named| began_from.as_ref() != Some(&named.manifest.id));
            let is_live = matches!(composition, Composition::Running(_));
            if is_live {
                // The files that the sandbox writes now stay on disk until the new machine is built.
                admission::check_room(&self.home, 0)?;
            }
            self.note_end()?;
            let mut host_is_done = Some(host_is_done);
            let mut only_the_guest = || {
                if let Some(host_is_done) = host_is_done.take() {
                    host_is_done();
                }
            };
            let can_stay = named.is_none() && began_from.is_some() && !matches!(to, Place::OwnDisk);
            let done = match &mut composition {
                Composition::Running(running) if can_stay => {
                    let reset = self.reset_in_place(running).await;
                    if reset.is_err() {
                        // The machine may still run.
                        self.reattach_network().await;
                    }
                    ResetDone::InPlace(reset?)
                }
                other => {
                    let from = match (to, snapshot.zip(named.as_ref())) {
                        (Place::OwnDisk, _) => Found::OwnDisk,
                        (_, Some((name, snapshot))) => Found::Snapshot(name, snapshot),
                        (_, None) => Found::Beginning,
                    };
                    self.begin_again(bundle, other.lineage(), from, boot_timeout, &mut only_the_guest).await?;
                    if !is_live {
                        self.restart_time()?;
                    }
                    ResetDone::Replaced
                }
            };
            self.reattach_network().await;
            self.forget_the_old_guest()?;
            self.trail().note(Event::Reset { to: snapshot.cloned() });
            // The agent of a snapshot is not trusted: it must not keep others from changing the
            // sandbox.
            drop(composition);
            let _in_use = change.end();
            only_the_guest();
            is_running();
            let is_restored = !matches!(to, Place::OwnDisk) && (snapshot.is_some() || began_from.is_some());
            let restored_within = host::restored_agent_answers_within().min(boot_timeout);
            let within = if is_restored { restored_within } else { boot_timeout };
            match timeout(within, self.settle()).await {
                Ok(settled) => settled.map_err(|error| ResetError::Identity(Box::new(error)))?,
                Err(_) => return Err(ResetError::Silent(within)),
            }
            Ok(done)
        })
    }

    /// Notes that the guest lacks everything that the manager gives a machine.
    fn forget_the_old_guest(&self) -> Result<(), ResetError> {
        // Meanwhile another command may have given the old machine its identity, which removed the
        // mark, so it is set again.
        identity::make_due(&self.directory)?;
        authority::forget(&self.directory)?;
        workspace::forget(&self.directory)?;
        workspace::mounting::make_due(&self.directory)?;
        mounts::mounting::make_due(&self.directory, &self.record)?;
        Ok(())
    }
}
