//! After a start: the records of the previous run are compared with what runs, and what does not fit is made to.

use super::{
    error::RegistryError,
    record::{Phase, Record},
    state::{Intent, Registry, paused_name},
};
use sandboxvm_manager::{FindError, RemoveError, SandboxId, State};
use std::time::{Duration, SystemTime};

/// What a start found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Sandboxes that run or rest on disk.
    pub(crate) found: usize,
    /// Records of sandboxes that are no more.
    pub(crate) lost: usize,
    /// Half-made sandboxes, removed.
    pub(crate) unfinished: usize,
}

impl Registry {
    /// Finds the sandboxes of the previous run.
    pub(crate) async fn recover(&self) -> Result<Recovered, RegistryError> {
        let mut recovered = Recovered::default();
        let records = self.records.all()?;
        self.remove_lost_builds()?;
        let mut network_changes = Vec::new();
        for intent in self.intents.all()? {
            match &intent {
                Intent::Make { name } => {
                    // Made, written down, and the intent not taken back: then it is a sandbox like any other.
                    let made = self.manager.find(name.as_str()).ok().map(|sandbox| sandbox.id().clone());
                    if !records.iter().any(|record| Some(&record.id) == made.as_ref()) {
                        recovered.unfinished += self.remove_unfinished(name.as_str()).await?;
                    }
                    self.intents.remove(name.as_str())?;
                }
                Intent::Fork { of, since } => {
                    for copy in self.copies(of, *since)? {
                        if !records.iter().any(|record| record.id == copy) {
                            recovered.unfinished += self.remove_unfinished(copy.as_str()).await?;
                        }
                    }
                    self.intents.remove(&format!("fork-{of}"))?;
                }
                Intent::SetNetwork { .. } => network_changes.push(intent),
            }
        }
        for record in records {
            let id = record.id.clone();
            match self.recover_one(record).await {
                Ok(true) => recovered.found += 1,
                Ok(false) => recovered.lost += 1,
                // One that cannot be dealt with must not keep the others from their users.
                Err(error) => tracing::error!(sandbox = %id, %error, "cannot recover a sandbox, skipping it"),
            }
        }
        self.complete_network_changes(network_changes).await?;
        self.recover_volumes();
        Ok(recovered)
    }

    async fn remove_unfinished(&self, reference: &str) -> Result<usize, RegistryError> {
        match self.manager.remove(reference, true).await {
            Ok(_) => Ok(1),
            Err(RemoveError::Find(FindError::Unknown(_))) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies of a sandbox that were made after a moment, by any process.
    fn copies(&self, of: &SandboxId, since: u64) -> Result<Vec<SandboxId>, RegistryError> {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(since);
        let made_since = self.manager.list()?.into_iter().filter(|summary| summary.record.created_at >= since);
        let of_it = |id: &SandboxId| {
            let sandbox = self.manager.find(id.as_str()).ok()?;
            sandbox.forked_from().ok()?.filter(|parent| parent == of)
        };
        Ok(made_since.map(|summary| summary.record.id).filter(|id| of_it(id).is_some()).collect())
    }

    async fn recover_one(&self, record: Record) -> Result<bool, RegistryError> {
        let entry = self.add(record.clone());
        let state = match self.sandbox(&entry) {
            Ok(sandbox) => Some((sandbox.state()?, sandbox)),
            Err(RegistryError::Unknown(_)) => None,
            Err(error) => return Err(error),
        };
        let snapshot = paused_name(&entry)?;
        match (state, &record.phase) {
            // Killed while it was being resumed, or after it was paused and before its VMM ended.
            (Some((state, sandbox)), Phase::Paused { .. }) => {
                if state.is_live() {
                    sandbox.kill().await?;
                }
                Ok(true)
            }
            // Killed while it was being paused, or just after it was resumed.
            (Some((state, sandbox)), Phase::Running) if state.is_live() => {
                sandbox.unpark()?;
                if state == State::Paused {
                    sandbox.resume().await?;
                }
                self.keep_supervised(&sandbox).await;
                self.remove_snapshot_of_manager(&snapshot)?;
                Ok(true)
            }
            // The host lost power while it was being paused or resumed: all of it is in the snapshot.
            (Some((_, sandbox)), Phase::Running) if self.manager.has_snapshot(&snapshot) => {
                sandbox.park()?;
                self.update(&entry, Record { phase: Phase::Paused { snapshot }, ..record })?;
                Ok(true)
            }
            _ => match self.kill(&entry).await {
                Ok(()) | Err(RegistryError::Unknown(_)) => Ok(false),
                Err(error) => Err(error),
            },
        }
    }
}
