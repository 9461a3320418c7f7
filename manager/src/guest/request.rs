//! Starts a process in a sandbox: checks the request, adds the environment of the sandbox, and
//! writes the audit line. Nothing may be sent to the guest before the line is written.

use crate::{
    audit::Event,
    guest::{error::ExecError, exec::Exec},
    sandbox::Sandbox,
};
use sandboxvm_protocol::agent::{CText, ExecRequest, MAX_ARGUMENTS_TOTAL};

impl Sandbox {
    /// Runs a process. Variables of the request replace those of the sandbox. Waits for a sandbox
    /// that still boots.
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn exec(&self, mut request: ExecRequest) -> Result<Exec, ExecError> {
        let own = self.record.env.iter().filter(|text| !is_set(&request.env, text));
        let own: Vec<CText> = own
            .map(|text| CText::try_from(text.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|source| ExecError::Argument { what: "environment of the sandbox".into(), source })?;
        request.env.splice(0..0, own);
        check_request(&request)?;
        let identity = self.reachable().await?;
        let trail = self.trail();
        let exec = trail.append(Event::exec(&request))?;
        match Exec::start(&self.directory, identity.as_ref(), request).await {
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

/// Returns true if `env` sets the variable that `entry` sets.
fn is_set(env: &[CText], entry: &str) -> bool {
    let key_and_equals = entry.split_inclusive('=').next().unwrap_or(entry).as_bytes();
    env.iter().any(|other| other.as_bytes().starts_with(key_and_equals))
}

/// Rejects a request that the agent could not run, before anything is sent.
pub(crate) fn check_request(request: &ExecRequest) -> Result<(), ExecError> {
    if request.argv.first().is_none_or(|program| program.as_bytes().is_empty()) {
        return Err(ExecError::NoCommand);
    }
    let total = request.argv.iter().chain(&request.env).map(|text| text.as_bytes().len() + 1).sum();
    if total > MAX_ARGUMENTS_TOTAL { Err(ExecError::TooLong(total)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{manager::tests::manager_with, vmm::state::State};
    use std::time::Duration;

    fn request(argv: &[&str]) -> ExecRequest {
        ExecRequest::plain(argv.iter().map(|word| CText::try_from(*word).unwrap()).collect())
    }

    #[test]
    fn invalid_commands_are_rejected_before_they_are_sent() {
        assert!(matches!(check_request(&request(&[])), Err(ExecError::NoCommand)));
        assert!(matches!(check_request(&request(&[""])), Err(ExecError::NoCommand)));
        check_request(&request(&["echo", ""])).unwrap();
        let part = "x".repeat(127 * 1024);
        let message = check_request(&request(&[part.as_str(); 9])).unwrap_err().to_string();
        assert!(message.contains("arguments and environment take 1170441 bytes"), "{message}");
    }

    #[test]
    fn request_variables_replace_those_of_the_sandbox() {
        let env = [CText::try_from("AB=1").unwrap()];
        assert!(is_set(&env, "AB=2") && is_set(&env, "AB="));
        assert!(!is_set(&env, "A=2") && !is_set(&env, "ABC=2"));
    }

    #[tokio::test]
    async fn dead_sandbox_is_named_in_the_error() {
        let (_dir, manager) = manager_with(&["abcdefgh"]);
        let sandbox = manager.find("abcdefgh").unwrap();
        assert_eq!(sandbox.state().unwrap(), State::Dead);
        let error = sandbox.exec(request(&["true"])).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo is not running"), "{error}");
        let error = sandbox.stop(Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo is not running"), "{error}");
    }
}
