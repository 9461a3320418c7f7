//! Sends requests to the guest: checks a request for a process, adds the environment of the sandbox,
//! and writes the audit line. No process may be started in the guest before its line is written.

use crate::{
    audit::Event,
    guest::{
        connection::agent::{AgentConnection, AgentError},
        error::ExecError,
        process::{exec::Exec, spec::ProcessSpec},
    },
    sandbox::Sandbox,
    vmm::wire::WireError,
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::agent::{
    AgentMessage, HostMessage,
    files::{FileOperation, FileReply},
    main_process::MainRequest,
    process::View,
};

impl Sandbox {
    /// Runs a process. Variables of the request replace those of the sandbox. Waits for a sandbox
    /// that still boots.
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub fn exec<'a>(&'a self, spec: ProcessSpec) -> BoxFuture<'a, Result<Exec, ExecError>> {
        Box::pin(async move { Exec::start(self, spec).await })
    }

    /// Connects, sends a request, and returns the first answer to it. Waits for a sandbox that
    /// still boots.
    pub(crate) async fn send(&self, request: HostMessage) -> Result<(AgentConnection, AgentMessage), ExecError> {
        if needs_mounts(&request) {
            self.mount_all().await?;
        }
        let request = match ProcessSpec::of_message(request) {
            Ok(spec) => {
                let of_network = self.trusted_authority().await?;
                let spec = spec.below_environment(&self.record.env)?;
                let spec = spec.below_environment(&of_network)?;
                let spec = match &self.record.image_defaults {
                    Some(image) => image.beneath(spec)?,
                    None => spec,
                };
                spec.into_message()
            }
            Err(request) => *request,
        };
        let identity = self.reachable().await?;
        let trail = self.trail();
        let exec = match &request {
            HostMessage::Exec(request) | HostMessage::ExecMain(MainRequest { process: request, .. }) => {
                Some(trail.append(Event::exec(request))?)
            }
            _ => None,
        };
        let sent = AgentConnection::request(&self.directory, identity.as_ref(), &request).await;
        let sent = sent.and_then(|(connection, first)| match (exec, &first) {
            (Some(_), AgentMessage::Started { .. }) | (None, _) => Ok((connection, first)),
            _ => Err(AgentError::from(WireError::Unexpected("answer to a request to run a process"))),
        });
        match &sent {
            Ok((_, first)) => {
                if let Some(event) = done(exec, &request, first) {
                    trail.note(event);
                }
            }
            Err(error) => {
                if let Some(exec) = exec {
                    trail.note(Event::NotStarted { exec, reason: error.to_string() });
                }
            }
        }
        match sent {
            Ok(sent) => Ok(sent),
            Err(error) => Err(self.explain(error).await),
        }
    }
}

/// Returns true for a request that workspace and mounts make a difference to, except those that mount them.
fn needs_mounts(request: &HostMessage) -> bool {
    match request {
        HostMessage::Exec(_) | HostMessage::ExecMain(_) => true,
        HostMessage::Files(request) => !matches!(
            request.operation,
            FileOperation::MountWorkspace(_) | FileOperation::Mount(_) | FileOperation::MountShare(_)
        ),
        _ => false,
    }
}

/// Returns what the audit log says of a request that was answered.
fn done(exec: Option<u64>, request: &HostMessage, first: &AgentMessage) -> Option<Event> {
    match (request, first) {
        (HostMessage::Exec(_) | HostMessage::ExecMain(_), AgentMessage::Started { pid }) => {
            Some(Event::Started { exec: exec?, pid: *pid })
        }
        (HostMessage::Attach(attach), AgentMessage::Attached(_)) if attach.view == View::Attend => {
            Some(Event::Attached { pid: attach.pid, stdin: attach.stdin })
        }
        (HostMessage::SignalProcess { pid, signal }, AgentMessage::Signalled) => {
            Some(Event::Signalled { pid: *pid, signal: signal.get() })
        }
        (HostMessage::Files(_), AgentMessage::File(FileReply::Failed(_))) => None,
        (HostMessage::Files(request), AgentMessage::File(_)) => Event::files(&request.operation, request.user.as_ref()),
        _ => None,
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
