//! How a request is answered that fails.

use sandboxvm_protocol::agent::{Failure, FailureKind};
use sandboxvm_protocol::frame::FrameError;

/// The result of handling one frame; a failure is sent and ends the connection.
pub(super) type Outcome = Result<(), Failure>;

/// The failure of a request that makes no sense.
pub(super) fn bad_request(message: &str) -> Failure {
    Failure { kind: FailureKind::BadRequest, message: message.to_owned() }
}

/// The failure of a request that makes sense, by no fault of the host.
pub(super) fn internal(message: String) -> Failure {
    Failure { kind: FailureKind::Internal, message }
}

/// The failure of a connection whose bytes are not frames.
pub(super) fn frame_failure(error: &FrameError) -> Failure {
    let kind = match error {
        FrameError::Version { .. } => FailureKind::UnsupportedVersion,
        _ => FailureKind::BadRequest,
    };
    Failure { kind, message: error.to_string() }
}
