//! Pauses and resumes a sandbox's vCPUs at a user's request, which overrides the idle rule.

use crate::{
    audit::Event,
    guest::in_use::{self, InUse},
    sandbox::Sandbox,
    vmm::control::ControlError,
};
use sandboxvm_protocol::vmm::ControlRequest;

impl Sandbox {
    /// Stops all vCPUs between two instructions. Only [`Self::resume`] makes them continue, even if
    /// the idle rule had paused the sandbox before.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn pause(&self) -> Result<(), ControlError> {
        self.control().await?.ask(ControlRequest::Pause).await?;
        in_use::stay_paused(&self.directory)?;
        self.trail().note(Event::Paused);
        Ok(())
    }

    /// Makes the vCPUs continue.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn resume(&self) -> Result<(), ControlError> {
        let mut control = self.control().await?;
        // Starts the idle time again.
        let in_use = InUse::begin(&self.directory).await;
        control.ask(ControlRequest::Resume).await?;
        drop(in_use);
        self.trail().note(Event::Resumed);
        Ok(())
    }
}
