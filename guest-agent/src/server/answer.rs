//! Responses to requests that fail.

use sandboxvm_protocol::agent::{Failure, FailureKind};
use sandboxvm_protocol::frame::FrameError;

/// The result of handling one frame. A failure is sent and ends the connection.
pub(super) type Outcome = Result<(), Failure>;

/// Returns the failure of an invalid request.
pub(super) fn bad_request(message: &str) -> Failure {
    Failure { kind: FailureKind::BadRequest, message: message.to_owned() }
}

/// Returns the failure of a valid request, which is not the host's fault.
pub(super) fn internal(message: String) -> Failure {
    Failure { kind: FailureKind::Internal, message }
}

/// Returns the failure of a connection whose bytes are not frames.
pub(super) fn frame_failure(error: &FrameError) -> Failure {
    let kind = match error {
        FrameError::Version { .. } => FailureKind::UnsupportedVersion,
        _ => FailureKind::BadRequest,
    };
    Failure { kind, message: error.to_string() }
}
