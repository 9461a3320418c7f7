//! The way of a request to its sandbox, which is resumed first where its client asked for that.

use super::{
    entry::{Entry, Reached},
    error::RegistryError,
    lifecycle::Back,
    state::Registry,
};
use sandboxvm_manager::{FindError, SandboxId};
use std::time::Duration;

/// Minimum time that a sandbox has after a request has resumed it.
const AUTO_RESUMED_FOR: Duration = Duration::from_secs(300);

impl Registry {
    /// A sandbox that a request is for, running: a paused one is resumed first where its client asked for that, and a change
    /// that is under way is waited for. Whether the request may reach it is the caller's to check, before.
    pub(crate) async fn reach(&self, id: &SandboxId) -> Result<Reached, RegistryError> {
        let unknown = || RegistryError::Unknown(id.to_string());
        let entry = self.entry(id).ok_or_else(unknown)?;
        loop {
            let pass = entry.gate.pass().await;
            if entry.is_gone() {
                return Err(unknown());
            }
            if entry.record().is_paused() {
                // The resume closes the gate that this request has passed.
                drop(pass);
                self.wake(&entry).await?;
                continue;
            }
            match self.manager.find(id.as_str()) {
                Ok(sandbox) if sandbox.state()?.is_live() => return Ok(Reached::new(entry, sandbox, pass)),
                // Ended, removed, or between the two machines of a reset: which of these is known once no change is under way.
                Ok(_) | Err(FindError::Unknown(_)) => {
                    drop(pass);
                    let _change = self.alter(&entry).await?;
                    if !entry.record().is_paused() {
                        self.running(&entry).await?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Brings back one that rests, unless another call did meanwhile.
    async fn wake(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _change = self.alter(entry).await?;
        let record = entry.record();
        if !record.is_paused() {
            return Ok(());
        }
        if !record.wakes() {
            return Err(RegistryError::Paused(entry.id.to_string()));
        }
        let lived = record.end_at.duration_since(record.started_at).unwrap_or_default();
        self.resume_held(entry, lived.max(AUTO_RESUMED_FOR), Back::WithMemory).await
    }
}
