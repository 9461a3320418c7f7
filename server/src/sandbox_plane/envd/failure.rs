//! What the manager says went wrong, in Connect's codes: clients make their own exceptions of these.

use super::connect::{Code, ConnectError};
use crate::channel::failure::Failure;
use sandboxvm_manager::{AgentError, ExecError, FailureClass, FailureKind, FileError, FileErrorKind};

impl From<ExecError> for ConnectError {
    fn from(error: ExecError) -> Self {
        if let ExecError::Agent(error) = &error {
            return of_agent(error);
        }
        let code = match error.class() {
            FailureClass::Invalid => Code::InvalidArgument,
            FailureClass::Unavailable => Code::Unavailable,
            FailureClass::Internal => Code::Internal,
        };
        let is_end_of_sandbox = error.is_of_an_ended_sandbox();
        Self { is_end_of_sandbox, ..Self::new(code, error.to_string()) }
    }
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> Self {
        Self::new(Code::Internal, failure.message)
    }
}

pub(super) fn of_agent(error: &AgentError) -> ConnectError {
    let code = match error {
        AgentError::Refused { kind, .. } => match kind {
            FailureKind::NotFound | FailureKind::NotExecutable | FailureKind::BadWorkingDirectory => {
                Code::InvalidArgument
            }
            FailureKind::NoSuchUser => Code::Unauthenticated,
            FailureKind::Resources => Code::ResourceExhausted,
            FailureKind::BadRequest => Code::FailedPrecondition,
            FailureKind::NoSuchProcess => Code::NotFound,
            FailureKind::ConnectionRefused => Code::Unavailable,
            FailureKind::UnsupportedVersion => Code::Unimplemented,
            FailureKind::Internal => Code::Internal,
        },
        AgentError::TooOld { .. } | AgentError::CannotLimit { .. } => Code::Unimplemented,
        AgentError::Idle(_) => Code::Unavailable,
        error if error.is_disconnect() => Code::Unavailable,
        _ => Code::Internal,
    };
    ConnectError::new(code, error.to_string())
}

impl From<FileError> for ConnectError {
    fn from(error: FileError) -> Self {
        let code = match error {
            FileError::Sandbox(error) => return error.into(),
            FileError::Path(_) => Code::InvalidArgument,
            FileError::TooMany(_) | FileError::TooLarge(_) => Code::ResourceExhausted,
            FileError::Refused(ref refusal) => of_file(refusal.kind),
        };
        Self::new(code, error.to_string())
    }
}

fn of_file(kind: FileErrorKind) -> Code {
    match kind {
        FileErrorKind::NotFound => Code::NotFound,
        FileErrorKind::AlreadyExists => Code::AlreadyExists,
        FileErrorKind::PermissionDenied => Code::PermissionDenied,
        FileErrorKind::NoSuchUser => Code::Unauthenticated,
        FileErrorKind::NoSpace | FileErrorKind::Resources => Code::ResourceExhausted,
        FileErrorKind::NotEmpty | FileErrorKind::ReadOnly => Code::FailedPrecondition,
        FileErrorKind::IsADirectory
        | FileErrorKind::NotADirectory
        | FileErrorKind::NotAFile
        | FileErrorKind::BadPath
        | FileErrorKind::BadArchive
        | FileErrorKind::BadRequest
        | FileErrorKind::NetworkMount => Code::InvalidArgument,
        FileErrorKind::Other => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{Interruption, State};

    fn interrupted(how: Interruption) -> ExecError {
        ExecError::Interrupted { sandbox: "a".into(), how }
    }

    fn reported(class: FailureClass, ended: bool) -> ExecError {
        ExecError::Reported { class, ended, message: "it said so".into() }
    }

    /// Clients raise their exception for a sandbox that was killed after these alone.
    #[test]
    fn the_end_of_a_sandbox_is_distinguished_from_other_failures() {
        let of = |error: ExecError| ConnectError::from(error);
        for ended in [
            interrupted(Interruption::Removed),
            interrupted(Interruption::Expired),
            reported(FailureClass::Unavailable, true),
            ExecError::NotRunning { sandbox: "a".into(), state: State::Dead },
        ] {
            let text = ended.to_string();
            let error = of(ended);
            assert!(error.is_end_of_sandbox && error.code == Code::Unavailable, "{text}: {error:?}");
            assert_eq!(error.message, text);
        }
        for other in [
            interrupted(Interruption::Reset),
            reported(FailureClass::Unavailable, false),
            reported(FailureClass::Internal, false),
            reported(FailureClass::Invalid, false),
            ExecError::NotReady("a".into()),
        ] {
            let text = other.to_string();
            assert!(!of(other).is_end_of_sandbox, "{text}");
        }
        let file = ConnectError::from(FileError::Sandbox(interrupted(Interruption::Expired)));
        assert!(file.is_end_of_sandbox && file.code == Code::Unavailable, "{file:?}");
    }
}
