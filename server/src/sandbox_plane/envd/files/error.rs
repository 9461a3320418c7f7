//! Failures of `/files`, as its clients tell them apart: by HTTP status.

use crate::sandbox_plane::envd::connect::{Code, ConnectError};
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use sandboxvm_manager::{CText, FileError, FileErrorKind};
use serde_json::json;

/// Why nothing was read or written, as clients tell errors apart here: by HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(in crate::sandbox_plane::envd) struct FilesError {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl FilesError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// With E2B's words where it is the user that the guest does not have.
    pub(super) fn of_user(self, user: &CText) -> Self {
        let user = String::from_utf8_lossy(user.as_bytes());
        match self.status {
            StatusCode::UNAUTHORIZED => {
                Self::new(self.status, format!("error looking up user '{user}': user: unknown user {user}"))
            }
            _ => self,
        }
    }
}

impl From<ConnectError> for FilesError {
    fn from(error: ConnectError) -> Self {
        let status = match error.code {
            // A client takes 502 for a sandbox that may be gone, and asks.
            Code::Unavailable => StatusCode::BAD_GATEWAY,
            code => code.status(),
        };
        match error.is_end_of_sandbox {
            // Clients recognize these words, and do not ask again whether it runs.
            true => Self::new(status, format!("The sandbox was not found: {}", error.message)),
            false => Self::new(status, error.message),
        }
    }
}

impl From<FileError> for FilesError {
    fn from(error: FileError) -> Self {
        match error.kind() {
            Some(FileErrorKind::NoSpace) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, format!("not enough disk space available: {error}"))
            }
            _ => ConnectError::from(error).into(),
        }
    }
}

impl IntoResponse for FilesError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "code": self.status.as_u16(), "message": self.message }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_status_that_clients_look_at() {
        for (code, status) in [
            (Code::NotFound, 404),
            (Code::InvalidArgument, 400),
            (Code::Unauthenticated, 401),
            (Code::PermissionDenied, 403),
            (Code::Unavailable, 502),
        ] {
            assert_eq!(FilesError::from(ConnectError::new(code, "x")).into_response().status(), status);
        }
    }
}
