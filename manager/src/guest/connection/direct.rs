//! A sandbox of this process, as `guest` reaches it.

use crate::{
    guest::{
        connection::{
            agent::{AgentConnection, AgentError},
            courier::Reaching,
            route::{EndLog, Route},
        },
        error::ExecError,
        process::running,
        silence::{self, Silence, Step},
    },
    sandbox::Sandbox,
    vmm::wire::WireError,
};
use sandboxvm_protocol::agent::{AgentMessage, HostMessage, SignalNumber, process::ProcessInfo};

impl Route for Sandbox {
    fn request(&self, request: HostMessage) -> Reaching<'_, Result<(AgentConnection, AgentMessage), ExecError>> {
        Box::pin(self.send(request))
    }

    fn processes(&self) -> Reaching<'_, Result<Vec<ProcessInfo>, ExecError>> {
        Box::pin(async {
            let identity = self.reachable().await?;
            match running::list(&self.directory, identity.as_ref()).await {
                Ok(processes) => Ok(processes),
                Err(error) => Err(self.explain(error).await),
            }
        })
    }

    fn signal(&self, pid: u32, signal: SignalNumber) -> Reaching<'_, Result<(), ExecError>> {
        Box::pin(async move {
            match self.send(HostMessage::SignalProcess { pid, signal }).await? {
                (_, AgentMessage::Signalled) => Ok(()),
                _ => Err(WireError::Unexpected("answer to a signal").into()),
            }
        })
    }

    fn explained(&self, error: AgentError) -> Reaching<'_, ExecError> {
        Box::pin(self.explain(error))
    }

    fn silence(&self, step: Step) -> Reaching<'_, Silence> {
        Box::pin(silence::watch(&self.directory, step))
    }

    fn end_log(&self, pid: u32) -> EndLog {
        EndLog::Trail(self.trail(), pid)
    }
}
