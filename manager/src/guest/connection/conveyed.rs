//! Answers to the calls of another process, with everything that its callers distinguish in errors.

use crate::guest::{
    connection::agent::AgentError,
    error::{ExecError, FailureClass},
    silence::Silence,
};
use sandboxvm_protocol::agent::{AgentMessage, FailureKind, process::ProcessInfo};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Comes with a connection. `early` arrived on it after the first answer.
    Begun {
        first: AgentMessage,
        early: Vec<u8>,
    },
    Processes(Vec<ProcessInfo>),
    Signalled,
    Silence(Silence),
    Failed(Conveyed),
    /// Nothing happened to the sandbox.
    Unexplained,
}

/// An [`ExecError`] on its way, with everything that callers distinguish.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Conveyed {
    Refused { kind: FailureKind, message: String },
    TooOld { agent: u8, needed: u8 },
    CannotLimit { agent: u8 },
    NotListening,
    Other { class: FailureClass, ended: bool, message: String },
}

impl From<ExecError> for Conveyed {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Agent(AgentError::Refused { kind, message }) => Self::Refused { kind, message },
            ExecError::Agent(AgentError::TooOld { agent, needed }) => Self::TooOld { agent, needed },
            ExecError::Agent(AgentError::CannotLimit { agent }) => Self::CannotLimit { agent },
            ExecError::Agent(AgentError::NotListening) => Self::NotListening,
            error => {
                Self::Other { class: error.class(), ended: error.is_of_an_ended_sandbox(), message: error.to_string() }
            }
        }
    }
}

impl From<Conveyed> for ExecError {
    fn from(conveyed: Conveyed) -> Self {
        match conveyed {
            Conveyed::Refused { kind, message } => Self::Agent(AgentError::Refused { kind, message }),
            Conveyed::TooOld { agent, needed } => Self::Agent(AgentError::TooOld { agent, needed }),
            Conveyed::CannotLimit { agent } => Self::Agent(AgentError::CannotLimit { agent }),
            Conveyed::NotListening => Self::Agent(AgentError::NotListening),
            Conveyed::Other { class, ended, message } => Self::Reported { class, ended, message },
        }
    }
}
