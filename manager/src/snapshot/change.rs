//! Changes of the files that a sandbox consists of. Snapshot, fork, flatten and reset all use these
//! types, which make it impossible to do their steps in the wrong order.
//!
//! ```text
//! Change::begin      the sandbox counts as in use, then its change lock is taken
//! Change::running    its VMM answers, so it has carried out every earlier request; then the
//!                    lineage is read
//! Running::announce  the lineage names what may come to be, before the VMM is asked for it
//! Running::complete  the VMM has carried it out
//! Running::conclude  the VMM has refused it, or its answer is not known
//! ```
//! Removing a sandbox does not take the change lock, so the sandbox may be removed at any moment.

use crate::{
    guest::in_use::{InUse, InUseError},
    home::directory::{DirectoryError, SandboxDirectory},
    sandbox::Sandbox,
    snapshot::{
        change_lock::ChangeLock,
        lineage::{Files, Lineage, LineageError},
    },
    vmm::{
        control::{ControlClient, ControlError},
        state::State,
    },
};
use futures_util::future::BoxFuture;

/// Why a change did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// Only a running sandbox can be changed like this.
    #[error("sandbox {sandbox} is {state}")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: State,
    },
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error(transparent)]
    Idle(#[from] InUseError),
    /// The VMM does not answer.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The lineage cannot be read or written.
    #[error(transparent)]
    Lineage(#[from] LineageError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The right to change the files of a sandbox. No other process snapshots, forks or resets it
/// meanwhile, so that what was observed of it stays true for several steps.
#[derive(Debug)]
pub struct Change<'s> {
    sandbox: &'s Sandbox,
    // Field order is drop order: a sandbox counts as in use as long as it is being changed.
    _lock: ChangeLock,
    in_use: Option<InUse>,
}

impl Sandbox {
    /// Waits until no other change is under way, and excludes others. Does not resume a sandbox
    /// that its idle rule paused. Cancel safe.
    ///
    /// # Errors
    /// When its directory cannot be used.
    pub async fn change(&self) -> Result<Change<'_>, DirectoryError> {
        Ok(Change { sandbox: self, _lock: ChangeLock::take(&self.directory).await?, in_use: None })
    }
}

impl<'s> Change<'s> {
    /// Like [`Sandbox::change`], and resumes a sandbox that its idle rule paused.
    pub(crate) fn begin(sandbox: &'s Sandbox) -> BoxFuture<'s, Result<Self, ChangeError>> {
        Box::pin(async move {
            let in_use = InUse::begin(&sandbox.directory).await?;
            Ok(Self { in_use, ..sandbox.change().await? })
        })
    }

    /// Returns the sandbox.
    #[must_use]
    pub fn sandbox(&self) -> &'s Sandbox {
        self.sandbox
    }

    /// Returns the sandbox's state. Between the two machines of a reset a sandbox seems to be dead
    /// for a moment, but not here.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn state(&self) -> Result<State, DirectoryError> {
        self.sandbox.state()
    }

    /// Opens a running sandbox for a change that its VMM carries out.
    pub(crate) async fn running(&self) -> Result<Running<'s>, ChangeError> {
        let sandbox = self.sandbox;
        let state = sandbox.state()?;
        if !state.is_live() {
            return Err(ChangeError::NotRunning { sandbox: sandbox.label(), state });
        }
        let (control, lineage) = Running::open(sandbox).await?;
        Ok(Running { sandbox, control, lineage })
    }

    /// Reads the lineage of a sandbox that does not run.
    pub(crate) fn lineage_at_rest(&self) -> Result<Lineage, ChangeError> {
        Ok(Lineage::read(&self.sandbox.directory)?)
    }

    /// Ends the change. The sandbox counts as in use until the returned value is dropped.
    pub(crate) fn end(self) -> Option<InUse> {
        self.in_use
    }
}

/// A running sandbox that is being changed: a VMM that has answered, and the lineage.
#[derive(Debug)]
pub(crate) struct Running<'s> {
    pub(crate) sandbox: &'s Sandbox,
    pub(crate) control: ControlClient,
    pub(crate) lineage: Lineage,
}

impl<'s> Running<'s> {
    fn open<'a>(sandbox: &'a Sandbox) -> BoxFuture<'a, Result<(ControlClient, Lineage), ChangeError>> {
        Box::pin(async move {
            let mut control = sandbox.control().await?;
            // A VMM that answers has carried out all earlier requests, so the files show their results.
            control.stats().await?;
            let lineage = Lineage::read(&sandbox.directory)?;
            Ok((control, lineage))
        })
    }

    /// Connects again and reads the lineage again, after a request that may or may not have been
    /// carried out.
    pub(crate) async fn reopen(&mut self) -> Result<(), ChangeError> {
        (self.control, self.lineage) = Self::open(self.sandbox).await?;
        Ok(())
    }

    pub(crate) fn directory(&self) -> &'s SandboxDirectory {
        &self.sandbox.directory
    }

    /// Records that `next`, whose new top layer is `top`, may come to be. If that fails, as on a
    /// full disk, removes `top` again: the VMM has not received a request yet.
    pub(crate) fn announce(&mut self, next: Files, top: &str) -> Result<(), LineageError> {
        let announced = self.lineage.announce(&self.sandbox.directory, next);
        if announced.is_err() {
            // The next change removes a file that stays.
            let _ = self.sandbox.directory.unlink(top);
        }
        announced
    }

    /// Records that the change was carried out, and its result.
    pub(crate) fn complete(&mut self, files: Files) -> Result<(), LineageError> {
        self.lineage.complete(&self.sandbox.directory, files)
    }

    /// Decides by the files whether the announced change was carried out. If the decision cannot be
    /// recorded, the next change decides again.
    pub(crate) fn conclude(&mut self) {
        let _ = self.lineage.conclude(&self.sandbox.directory);
    }
}
