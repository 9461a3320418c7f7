//! Ending a sandbox in order: its agent is asked, and the machine is ended from outside when that comes to nothing. Says
//! which of the two it was; `end` does the latter. Called by users and by a sandbox's supervisor.

use crate::{
    agent::{AgentConnection, AgentError},
    audit::Event,
    directory::DirectoryError,
    end::{self, EndError},
    in_use::InUse,
    sandbox::Sandbox,
    state::State,
};
use sandboxvm_protocol::{
    agent::{AgentMessage, HostMessage},
    vmm::ExitReason,
};
use std::{fmt, time::Duration};
use tokio::time::{Instant, timeout_at};

/// What the guest itself may take to shut down after its processes' time is up: two seconds for what does not die, two for
/// its last words (`guest-agent/src/server/ending.rs`), and the rest for its disks.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(7);

/// How a sandbox came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Stopped {
    /// Processes were told, file systems synced.
    InOrder,
    /// Its machine was ended from outside: what it had not written to its disk is gone.
    ByForce(ForceCause),
    /// It ended meanwhile for another reason, as when its kernel panicked or somebody removed it.
    Otherwise(String),
}

/// Why a sandbox was ended by force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForceCause {
    /// Its vCPUs stood still, or had not booted it yet.
    NotRunning(State),
    /// Its agent could not be asked, or refused.
    Agent(String),
    /// It was asked, and did not end in this time.
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

/// Why a sandbox did not stop.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It does not run.
    #[error("cannot stop sandbox {sandbox}: it is {state}")]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: State,
    },
    /// It cannot be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl Sandbox {
    /// Ends it in order: processes get SIGTERM and `grace` to end, file systems are synced. What does not end by then is
    /// ended as by [`Self::kill`]. A paused sandbox cannot be asked and is ended at once.
    ///
    /// # Errors
    /// Every [`StopError`].
    pub async fn stop(&self, grace: Duration) -> Result<Stopped, StopError> {
        // One that was paused because nobody used it ends in order too; one that cannot be used ends all the same.
        let _in_use = InUse::begin(&self.directory).await;
        self.stop_unused(grace).await
    }

    /// As [`Self::stop`], by whoever sees to it that nobody uses the sandbox.
    pub(crate) async fn stop_unused(&self, grace: Duration) -> Result<Stopped, StopError> {
        let state = self.state()?;
        if !state.is_live() {
            // A VMM that let go of its lock may be there, or something that it started.
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
    }

    fn ended_by_force(&self, cause: ForceCause) -> Stopped {
        self.trail().note(Event::StoppedByForce { because: cause.to_string() });
        Stopped::ByForce(cause)
    }

    /// What it came to when the VMM has ended, which has said so by then.
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

    /// Asks the agent, and waits for the VMM to end.
    async fn shut_down(&self, grace: Duration) -> Result<Asked, DirectoryError> {
        // 49 days are the most that it can be told.
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let request = HostMessage::Shutdown { grace_ms };
        // After its processes the guest itself needs a moment; one that stalls gets no more than that.
        let within = Duration::from_millis(grace_ms.into()) + SHUTDOWN_WITHIN;
        let deadline = Instant::now() + within;
        let asked = timeout_at(deadline, AgentConnection::request(&self.directory, None, &request)).await;
        let (patience, cause) = match &asked {
            // The connection stays open until the end, so that the agent is not told the caller went away.
            Ok(Ok((_, AgentMessage::ShuttingDown))) => (within, ForceCause::TooSlow(within)),
            Ok(Ok(_)) => {
                return Ok(Asked::Refused(ForceCause::Agent("its guest agent sent an unexpected response".to_owned())));
            }
            // It was not asked, but somebody else may have done that before.
            Ok(Err(error @ (AgentError::NotListening | AgentError::Connect(_)))) => {
                (SHUTDOWN_WITHIN, ForceCause::Agent(error.to_string()))
            }
            // Once asked, a machine may stop its devices before the answer is out.
            Ok(Err(error)) if error.is_disconnect() => (within, ForceCause::Agent(error.to_string())),
            Ok(Err(error)) => return Ok(Asked::Refused(ForceCause::Agent(error.to_string()))),
            Err(_) => return Ok(Asked::Refused(ForceCause::TooSlow(within))),
        };
        let left = deadline.saturating_duration_since(Instant::now()).min(patience);
        let gone = end::gone_within(&self.directory, left).await?;
        Ok(if gone { Asked::Ended } else { Asked::Refused(cause) })
    }
}

/// What came of asking the agent.
#[derive(Debug)]
enum Asked {
    /// The VMM has ended.
    Ended,
    /// It goes on, or cannot be asked.
    Refused(ForceCause),
}
