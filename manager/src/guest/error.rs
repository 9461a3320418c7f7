//! Why a request to a guest failed, in terms of the sandbox that the caller named.

use crate::{
    audit::AuditError,
    guest::{
        connection::agent::AgentError,
        interruption::Interruption,
        process::spec::ProcessSpecError,
        silence::{self, Silence},
    },
    home::directory::DirectoryError,
    vmm::{control::ControlError, last_words::LastWords, state::State, wire::WireError},
};
#[cfg(doc)]
use sandboxvm_protocol::agent::FailureKind;
use sandboxvm_protocol::vmm::ExitReason;
use serde::{Deserialize, Serialize};

/// Why a process was not run, or why its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The process cannot be described to an agent, alone or with the environment of its sandbox.
    #[error(transparent)]
    Spec(#[from] ProcessSpecError),
    /// The guest cannot be made to trust the sandbox's certificate authority.
    #[error("cannot make the guest trust the certificate authority of its sandbox: {0}")]
    Authority(String),
    /// The guest cannot mount what its sandbox has beside the root.
    #[error("cannot mount what the sandbox has beside its root: {0}")]
    Mounts(String),
    /// The guest cannot mount the workspace of its sandbox.
    #[error("cannot mount the workspace of the sandbox: {0}")]
    Workspace(String),
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
    /// Another process carried the request, and reported this.
    #[error("{message}")]
    Reported {
        /// What kind of failure it is.
        class: FailureClass,
        /// True if the sandbox does not exist any more, see [`Self::is_of_an_ended_sandbox`].
        ended: bool,
        /// What the process reported.
        message: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The audit log cannot be written, so the request was not sent.
    #[error("{0}")]
    Audit(#[from] AuditError),
}

/// What kind of failure an [`ExecError`] is, for callers that only report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureClass {
    /// The request is invalid.
    Invalid,
    /// The sandbox cannot be used now, or not any more.
    Unavailable,
    /// The host failed, or the guest broke the protocol.
    Internal,
}

impl ExecError {
    /// Returns what kind of failure it is. A refusal of the agent says more ([`FailureKind`]).
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Spec(_) => FailureClass::Invalid,
            Self::Agent(AgentError::Idle(_)) => FailureClass::Unavailable,
            Self::Agent(error) if error.is_disconnect() => FailureClass::Unavailable,
            Self::Agent(_)
            | Self::Directory(_)
            | Self::Audit(_)
            | Self::Authority(_)
            | Self::Workspace(_)
            | Self::Mounts(_) => FailureClass::Internal,
            Self::NotRunning { .. }
            | Self::Ended { .. }
            | Self::Vanished { .. }
            | Self::Interrupted { .. }
            | Self::Unresponsive { .. }
            | Self::Control(_)
            | Self::NotReady(_) => FailureClass::Unavailable,
            Self::Reported { class, .. } => *class,
        }
    }

    /// Returns true if the request can never succeed, because the machine or the whole sandbox does
    /// not exist any more: the sandbox was removed, it expired, or its machine ended.
    #[must_use]
    pub fn is_of_an_ended_sandbox(&self) -> bool {
        match self {
            Self::Interrupted { how, .. } => *how != Interruption::Reset,
            Self::Ended { .. } | Self::Vanished { .. } => true,
            Self::Reported { ended, .. } => *ended,
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
