//! Starts a process in a sandbox: checks the request, adds the environment of the sandbox, and
//! writes the audit line. Nothing may be sent to the guest before the line is written.

use crate::{
    audit::Event,
    guest::{error::ExecError, exec::Exec, process_spec::ProcessSpec},
    sandbox::Sandbox,
};

impl Sandbox {
    /// Runs a process. Variables of the request replace those of the sandbox. Waits for a sandbox
    /// that still boots.
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
    async fn dead_sandbox_is_named_in_the_error() {
        let (_dir, manager) = manager_with(&["abcdefgh"]);
        let sandbox = manager.find("abcdefgh").unwrap();
        assert_eq!(sandbox.state().unwrap(), State::Dead);
        let error = sandbox.exec(ProcessSpec::builder(["true"]).build().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo is not running"), "{error}");
        let error = sandbox.stop(Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo: it is not running"), "{error}");
    }
}
