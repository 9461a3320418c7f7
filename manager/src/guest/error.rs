//! Why a request to a guest failed, in terms of the sandbox that the caller named.

use crate::{
    audit::AuditError,
    guest::{
        agent::AgentError,
        interruption::Interruption,
        silence::{self, Silence},
    },
    home::directory::DirectoryError,
    vmm::{control::ControlError, last_words::LastWords, state::State, wire::WireError},
};
use sandboxvm_protocol::{
    agent::{CTextError, MAX_ARGUMENTS_TOTAL},
    vmm::ExitReason,
};

/// Why a process was not run, or why its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The command has no program.
    #[error("the command is empty")]
    NoCommand,
    /// An argument that cannot be passed to a program.
    #[error("{what}: {source}")]
    Argument {
        /// Which argument it is.
        what: String,
        /// What is wrong with it.
        source: CTextError,
    },
    /// Arguments and environment together are too long.
    #[error("arguments and environment take {0} bytes, and Linux accepts at most {MAX_ARGUMENTS_TOTAL}")]
    TooLong(usize),
    /// The sandbox does not run.
    #[error("sandbox {sandbox} is {state}")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: State,
    },
    /// The sandbox ended during the request.
    #[error("sandbox {sandbox} ended while the command was running: {reason}{last_words}")]
    Ended {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The reason of its end.
        reason: ExitReason,
        /// The last lines of its logs. Empty after an orderly end.
        last_words: LastWords,
    },
    /// The VMM ended during the request without reporting a reason.
    #[error("sandbox {sandbox} ended while the command was running: its VMM disappeared (killed?){last_words}")]
    Vanished {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The last lines of its logs.
        last_words: LastWords,
    },
    /// The sandbox was reset or removed, or it expired, during the request.
    #[error("sandbox {sandbox} {how} before the request was completed")]
    Interrupted {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// What happened to the sandbox.
        how: Interruption,
    },
    /// The sandbox exists and does not answer.
    #[error("sandbox {sandbox} does not answer: {silence}")]
    Unresponsive {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Which part of it does not answer.
        silence: Silence,
    },
    /// The agent refused the request or failed.
    #[error("{0}")]
    Agent(#[from] AgentError),
    /// The request to the VMM failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The sandbox did not become ready in time.
    #[error("sandbox {0} is still booting after {limit} s", limit = silence::BOOT.as_secs())]
    NotReady(String),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The audit log cannot be written, so the request was not sent.
    #[error("{0}")]
    Audit(#[from] AuditError),
}

impl ExecError {
    /// Returns true if the request can never succeed, because the machine or the whole sandbox does
    /// not exist any more: the sandbox was removed, it expired, or its machine ended.
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

impl From<WireError> for ExecError {
    fn from(error: WireError) -> Self {
        Self::Agent(error.into())
    }
}
