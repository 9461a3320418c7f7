//! Why a VMM did not carry out a request.

use super::ANSWER_WITHIN;
use crate::{
    home::directory::DirectoryError,
    vmm::{descriptors::LaunchError, state::State, wire::WireError},
};
use sandboxvm_protocol::vmm::{ExitReason, RefusalKind};
use std::time::Duration;

/// Why a VMM did not carry out a request.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The sandbox has no VMM.
    #[error("sandbox {sandbox} is {state}")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: State,
    },
    /// The socket does not accept a connection.
    #[error(transparent)]
    Connect(#[from] DirectoryError),
    /// The exchange of frames failed.
    #[error("cannot talk to the VMM: {0}")]
    Wire(#[from] WireError),
    /// The request could not be sent.
    #[error("{0}")]
    Send(#[from] LaunchError),
    /// The VMM did not finish a long request in time.
    #[error("the VMM did not finish within {} s", .0.as_secs())]
    Unfinished(Duration),
    /// The VMM did not answer in time.
    #[error("{}its VMM did not answer within {} s", does_not_answer(.0.as_deref()), ANSWER_WITHIN.as_secs())]
    Silent(
        /// Name of the sandbox, or its ID if it has none. Not known for a sandbox that is being
        /// created.
        Option<String>,
    ),
    /// The VMM refused the request.
    #[error("{0}")]
    Refused(VmmRefusal),
    /// The VMM is of a build that does not know the request.
    #[error("the VMM is of an older build, which cannot do this")]
    TooOld,
    /// The machine ended before the VMM answered.
    #[error("{0}")]
    Ended(ExitReason),
}

/// Why a VMM refused a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct VmmRefusal {
    /// The kind, for programs. Not known from a VMM of a build that does not say it.
    pub kind: Option<RefusalKind>,
    /// What was tried and why it failed.
    pub message: String,
}

impl From<VmmRefusal> for ControlError {
    fn from(refusal: VmmRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl ControlError {
    /// Returns of what kind the refusal of the VMM is, if it refused and says so.
    #[must_use]
    pub fn refusal(&self) -> Option<RefusalKind> {
        match self {
            Self::Refused(refusal) => refusal.kind,
            _ => None,
        }
    }
}

fn does_not_answer(sandbox: Option<&str>) -> String {
    sandbox.map_or_else(String::new, |sandbox| format!("sandbox {sandbox} does not answer: "))
}
