//! Starts a process in a sandbox: adds the sandbox's environment, and writes the audit line before
//! anything is sent.

use crate::{
    audit::Event,
    guest::{error::ExecError, exec::Exec, process_spec::ProcessSpec},
    sandbox::Sandbox,
};

impl Sandbox {
    /// Runs a process. The sandbox's own environment comes before the spec's; a sandbox that still boots is waited
    /// for.
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn exec(&self, spec: ProcessSpec) -> Result<Exec, ExecError> {
        let spec = spec.below_environment(&self.record.env)?;
        let identity = self.reachable().await?;
        let trail = self.trail();
        let exec = trail.append(Event::exec(spec.request()))?;
        match Exec::start(&self.directory, identity.as_ref(), spec).await {
            Ok(mut started) => {
                trail.note(Event::Started { exec, pid: started.pid });
                started.log_end(trail);
                Ok(started)
            }
            Err(error) => {
                trail.note(Event::NotStarted { exec, reason: error.to_string() });
                Err(self.explain(error).await)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{manager::tests::manager_with, vmm::state::State};
    use std::time::Duration;

    #[tokio::test]
    async fn nothing_runs_in_a_dead_sandbox_and_it_says_so_by_name() {
        let (_dir, manager) = manager_with(&["abcdefgh"]);
        let sandbox = manager.find("abcdefgh").unwrap();
        assert_eq!(sandbox.state().unwrap(), State::Dead);
        let error = sandbox.exec(ProcessSpec::builder(["true"]).build().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo is not running"), "{error}");
        let error = sandbox.stop(Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo is not running"), "{error}");
    }
}
