//! Creates a sandbox for a caller: starts its machine, writes the audit line, and sweeps what
//! killed processes left behind. May not return an error and leave a sandbox behind.

use crate::{
    audit::Event,
    create::{error::CreateError, spec::SandboxSpec, started::StartedSandbox},
    lifecycle::sweep,
    manager::Manager,
    vmm::group::pool,
};
use sandboxvm_images::bundle::Bundle;

impl Manager {
    /// Creates a sandbox and waits until its agent listens. Cancel safe: dropping the future
    /// removes everything that was created.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn create(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let mut started = self.start(bundle, spec).await?;
        match started.settled().await {
            Ok(()) => Ok(started),
            Err(error) => {
                // The caller needs the cause; a later sweep reports what could not be removed.
                let _ = started.finish().await;
                Err(error)
            }
        }
    }

    /// Like [`Self::create`], but returns while the machine still boots:
    /// [`StartedSandbox::settled`] waits for the boot. This is for callers that may cancel
    /// meanwhile and want to wait for the end of the sandbox then. The first machine of its kind
    /// takes as long as a boot before this returns, because its ready snapshot is made first.
    /// Cancel safe.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn start(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let started = self.start_machine(bundle, spec).await?;
        let sandbox = started.sandbox();
        sandbox.trail().append(Event::created(&sandbox.record, (&spec.start_from).into()))?;
        if let Some(network) = &spec.network {
            sandbox.trail().append(Event::network_set(network))?;
        }
        // The VM runs, so this is the time to remove what others left behind.
        let home = self.home.clone();
        tokio::task::spawn_blocking(move || {
            let swept = sweep::abandoned(&home);
            // Makes a control group in advance, so that the next start does not wait for one.
            pool::fill(&home).and(swept)
        });
        Ok(started)
    }
}
