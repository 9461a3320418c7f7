//! Why a request to a guest failed, in terms of the sandbox that its caller named.

use crate::{
    audit::AuditError,
    guest::{
        agent::AgentError,
        interruption::Interruption,
        process_spec::ProcessSpecError,
        silence::{self, Silence},
    },
    home::directory::DirectoryError,
    vmm::{control::ControlError, last_words::LastWords, state::State, wire::WireError},
};
use sandboxvm_protocol::vmm::ExitReason;

/// Why a process was not run, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The process cannot be described to an agent, alone or with the environment of its sandbox.
    #[error(transparent)]
    Spec(#[from] ProcessSpecError),
    /// The sandbox does not run.
    #[error("sandbox {sandbox} is {state}{}", hint(.state, .sandbox))]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: State,
    },
    /// The sandbox ended meanwhile.
    #[error("sandbox {sandbox} ended while the command ran: {reason}{last_words}")]
    Ended {
        /// Its name, else its ID.
        sandbox: String,
        /// Why.
        reason: ExitReason,
        /// What its logs end with; nothing when nothing went wrong.
        last_words: LastWords,
    },
    /// Its VMM vanished meanwhile.
    #[error("sandbox {sandbox} ended while the command ran: its VMM vanished (killed?){last_words}")]
    Vanished {
        /// Its name, else its ID.
        sandbox: String,
        /// What its logs end with.
        last_words: LastWords,
    },
    /// It was taken away from under the request.
    #[error("sandbox {sandbox} {how} before this was done")]
    Interrupted {
        /// Its name, else its ID.
        sandbox: String,
        /// What became of it.
        how: Interruption,
    },
    /// It is there, and does not answer.
    #[error("sandbox {sandbox} does not answer: {silence}")]
    Unresponsive {
        /// Its name, else its ID.
        sandbox: String,
        /// Which part of it.
        silence: Silence,
    },
    /// The agent refused or failed.
    #[error("{0}")]
    Agent(#[from] AgentError),
    /// The VMM's control socket failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The sandbox did not become ready.
    #[error("sandbox {0} is still booting after {limit} s; `sandboxvm logs {0}` may say why", limit = silence::BOOT.as_secs())]
    NotReady(String),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// What cannot be logged is not done.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl ExecError {
    /// True when the request cannot succeed again since its machine, or all of the sandbox, is gone: it was removed, it
    /// expired, or its machine ended.
    #[must_use]
    pub fn is_of_an_ended_sandbox(&self) -> bool {
        match self {
            Self::Interrupted { how, .. } => *how != Interruption::Reset,
            Self::Ended { .. } | Self::Vanished { .. } => true,
            Self::NotRunning { state, .. } => matches!(state, State::Exited { .. } | State::Dead),
            _ => false,
        }
    }
}

fn hint(state: &State, id: &str) -> String {
    match state {
        State::Paused => format!("; `sandboxvm resume {id}` lets it go on"),
        State::Exited { .. } | State::Dead => {
            format!("; `sandboxvm logs {id}` shows its console, `sandboxvm rm {id}` removes it")
        }
        State::Creating | State::Running => String::new(),
    }
}

impl From<WireError> for ExecError {
    fn from(error: WireError) -> Self {
        Self::Agent(error.into())
    }
}
