//! A sandbox while only its holder changes what it is made of: no other process snapshots, forks or resets it meanwhile,
//! so that what was seen of it stays true for several steps. Called by a server that puts a sandbox to rest.

use crate::{
    audit::Event,
    home::directory::DirectoryError,
    sandbox::Sandbox,
    snapshot::{
        error::SnapshotError,
        lineage::ChangeLock,
        taking::{self, SnapshotTaken},
    },
    vmm::state::State,
};
use sandboxvm_protocol::ids::SandboxName;

/// See the module. Removing the sandbox needs no such lock: it may be gone at any moment.
#[derive(Debug)]
pub struct Change<'s> {
    sandbox: &'s Sandbox,
    lock: ChangeLock,
}

impl Sandbox {
    /// Waits for all changes that are under way, and excludes others. Cancel safe.
    ///
    /// # Errors
    /// When its directory cannot be used.
    pub async fn change(&self) -> Result<Change<'_>, DirectoryError> {
        Ok(Change { sandbox: self, lock: ChangeLock::take(&self.directory).await? })
    }
}

impl Change<'_> {
    /// What the sandbox does now; between the two machines of a reset it seems to do nothing for a moment, but not here.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn state(&self) -> Result<State, DirectoryError> {
        self.sandbox.state()
    }

    /// As [`Sandbox::snapshot`].
    ///
    /// # Errors
    /// Every [`SnapshotError`].
    pub async fn snapshot(&self, name: SandboxName) -> Result<SnapshotTaken, SnapshotError> {
        let taken = taking::take_named(self.sandbox, &self.lock, name.clone()).await?;
        self.sandbox.trail().note(Event::SnapshotCreated { snapshot: name });
        Ok(taken)
    }
}
