//! Stops a sandbox gracefully: asks its agent, and ends the machine from outside if that fails.
//! Reports which of the two it was; `end` does the latter. Called for users and by the supervisor
//! of a sandbox.

use crate::{
    audit::Event,
    guest::{
        connection::agent::{AgentConnection, AgentError},
        in_use::InUse,
    },
    home::directory::DirectoryError,
    sandbox::Sandbox,
    vmm::{
        end::{self, EndError},
        state::State,
    },
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::{
    agent::{AgentMessage, HostMessage},
    vmm::ExitReason,
};
use std::{fmt, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Time that the guest gets to shut down after the grace period of its processes: two seconds for
/// processes that do not die, two for its last messages (`guest-agent/src/server/ending.rs`), and
/// the rest for its disks.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(7);

/// How a sandbox was stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Stopped {
    /// The processes received a signal, and the file systems were synced.
    InOrder,
    /// The machine was ended from outside: data that it had not written to its disk is lost.
    ByForce(ForceCause),
    /// The machine ended meanwhile for another reason, such as a kernel panic or a removal.
    Otherwise(String),
}

/// Why a sandbox was ended by force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForceCause {
    /// The vCPUs were stopped, or the machine was still booting.
    NotRunning(State),
    /// The agent could not be asked, or refused.
    Agent(String),
    /// The machine was asked to end, and did not within this time.
    TooSlow(Duration),
}

impl fmt::Display for ForceCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning(state) => write!(f, "it was {state}"),
            Self::Agent(error) => f.write_str(error),
            Self::TooSlow(within) => write!(f, "it did not stop within {} s", within.as_secs()),
        }
    }
}

/// Why a sandbox was not stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The sandbox does not run.
    #[error("cannot stop sandbox {sandbox}: it is {state}")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: State,
    },
    /// The VMM of the sandbox cannot be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl Sandbox {
    /// Stops the sandbox gracefully: processes get SIGTERM and have `grace` to end, and file
    /// systems are synced. A machine that has not ended by then is ended as by [`Self::kill`]. A
    /// paused sandbox cannot be asked, and is ended immediately.
    ///
    /// # Errors
    /// Every [`StopError`].
    pub async fn stop(&self, grace: Duration) -> Result<Stopped, StopError> {
        // A sandbox that the idle rule paused is stopped gracefully too. If it cannot be used, it
        // is ended anyway.
        let _in_use = InUse::begin(&self.directory).await;
        self.stop_unused(grace).await
    }

    /// Like [`Self::stop`], for a caller that makes sure that no client uses the sandbox.
    pub(crate) fn stop_unused<'a>(&'a self, grace: Duration) -> BoxFuture<'a, Result<Stopped, StopError>> {
        Box::pin(async move {
            let state = self.state()?;
            if !state.is_live() {
                // A VMM that released its lock may still exist, or a process that it started.
                if self.end().await? {
                    return Ok(self.ended_by_force(ForceCause::NotRunning(state)));
                }
                return Err(StopError::NotRunning { sandbox: self.label(), state });
            }
            let asked = match state {
                State::Running => self.shut_down(grace).await?,
                state => Asked::Refused(ForceCause::NotRunning(state)),
            };
            match asked {
                Asked::Ended => {
                    self.kill().await?;
                    self.note_stopped()
                }
                Asked::Refused(cause) => {
                    self.kill().await?;
                    Ok(self.ended_by_force(cause))
                }
            }
        })
    }

    fn ended_by_force(&self, cause: ForceCause) -> Stopped {
        self.trail().note(Event::StoppedByForce { because: cause.to_string() });
        Stopped::ByForce(cause)
    }

    /// Returns the result after the VMM has ended, which has reported its reason by then.
    fn note_stopped(&self) -> Result<Stopped, StopError> {
        let reason = match self.state()? {
            State::Exited { reason: ExitReason::GuestShutdown } => {
                self.trail().note(Event::Stopped);
                return Ok(Stopped::InOrder);
            }
            state => state.end().unwrap_or_else(|| "another process started it again".to_owned()),
        };
        self.trail().note(Event::MachineEnded { reason: reason.clone() });
        Ok(Stopped::Otherwise(reason))
    }

    /// Asks the agent to shut down, and waits until the VMM has ended.
    async fn shut_down(&self, grace: Duration) -> Result<Asked, DirectoryError> {
        // The message can hold at most 49 days.
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let request = HostMessage::Shutdown { grace_ms };
        // After its processes have ended, the guest itself needs a moment. A guest that stalls gets
        // no more than that.
        let within = Duration::from_millis(grace_ms.into()) + SHUTDOWN_WITHIN;
        let deadline = Instant::now() + within;
        let asked = timeout_at(deadline, AgentConnection::request(&self.directory, None, &request)).await;
        let (patience, cause) = match &asked {
            // The connection stays open until the end, so that the agent does not see its client
            // disconnect.
            Ok(Ok((_, AgentMessage::ShuttingDown))) => (within, ForceCause::TooSlow(within)),
            Ok(Ok(_)) => {
                return Ok(Asked::Refused(ForceCause::Agent("its guest agent sent an unexpected response".to_owned())));
            }
            // This request did not reach the agent, but another client may have sent one before.
            Ok(Err(error @ (AgentError::NotListening | AgentError::Connect(_)))) => {
                (SHUTDOWN_WITHIN, ForceCause::Agent(error.to_string()))
            }
            // Once it has received the request, a machine may stop its devices before the answer is
            // sent.
            Ok(Err(error)) if error.is_disconnect() => (within, ForceCause::Agent(error.to_string())),
            Ok(Err(error)) => return Ok(Asked::Refused(ForceCause::Agent(error.to_string()))),
            Err(_) => return Ok(Asked::Refused(ForceCause::TooSlow(within))),
        };
        let left = deadline.saturating_duration_since(Instant::now()).min(patience);
        let gone = end::gone_within(&self.directory, left).await?;
        Ok(if gone { Asked::Ended } else { Asked::Refused(cause) })
    }
}

/// The result of asking the agent.
#[derive(Debug)]
enum Asked {
    /// The VMM has ended.
    Ended,
    /// The machine keeps running, or cannot be asked.
    Refused(ForceCause),
}
