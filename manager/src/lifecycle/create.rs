//! Creates a sandbox for a caller: starts its machine, writes the audit line, and sweeps what killed processes left behind.

use crate::{
    audit::Event,
    create::{error::CreateError, spec::SandboxSpec, started::StartedSandbox},
    lifecycle::sweep,
    manager::Manager,
    vmm::group::pool,
};
use sandboxvm_images::bundle::Bundle;

impl Manager {
    /// Makes a sandbox and waits until its agent listens. Cancel safe: a dropped future leaves nothing.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn create(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let mut started = self.start(bundle, spec).await?;
        match started.settled().await {
            Ok(()) => Ok(started),
            Err(error) => {
                // The cause is what the caller needs; what cannot be removed a sweep will name.
                let _ = started.finish().await;
                Err(error)
            }
        }
    }

    /// As [`Self::create`], but returns while a machine that boots does so: [`StartedSandbox::settled`] waits for it.
    /// For callers who may change their mind meanwhile and want to see the end of it. The first machine of its kind
    /// takes as long as a boot before this returns. Cancel safe.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn start(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let started = self.start_machine(bundle, spec).await?;
        let sandbox = started.sandbox();
        sandbox.trail().append(Event::created(&sandbox.record, (&spec.start_from).into()))?;
        // The VM runs: what is left of others can be taken away meanwhile.
        let home = self.home.clone();
        tokio::task::spawn_blocking(move || {
            let swept = sweep::abandoned(&home);
            // The next start finds a control group that is made.
            pool::fill(&home).and(swept)
        });
        Ok(started)
    }
}
