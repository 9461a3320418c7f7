//! Pauses and resumes a sandbox's vCPUs at a user's request, which overrides the idle rule.

use crate::{
    audit::Event,
    guest::in_use::{self, InUse},
    sandbox::Sandbox,
    vmm::control::ControlError,
};
use sandboxvm_protocol::vmm::ControlRequest;

impl Sandbox {
    /// Stops all vCPUs between two instructions. Nothing but [`Self::resume`] has them go on, also where the sandbox was
    /// paused already because nobody used it.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn pause(&self) -> Result<(), ControlError> {
        self.control().await?.ask(ControlRequest::Pause).await?;
        in_use::stay_paused(&self.directory)?;
        self.trail().note(Event::Paused);
        Ok(())
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn resume(&self) -> Result<(), ControlError> {
        let mut control = self.control().await?;
        // Its idle time begins anew.
        let in_use = InUse::begin(&self.directory).await;
        control.ask(ControlRequest::Resume).await?;
        drop(in_use);
        self.trail().note(Event::Resumed);
        Ok(())
    }
}
