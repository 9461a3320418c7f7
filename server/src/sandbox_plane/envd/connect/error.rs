//! Errors as Connect has them: a code, the HTTP status that goes with it, and a text for people.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// The codes in use here; <https://connectrpc.com/docs/protocol#error-codes>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ConnectError {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// The sandbox ended while the request was under way.
    #[serde(skip)]
    pub(crate) is_end_of_sandbox: bool,
}

impl Code {
    /// The status that Connect gives it.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Internal | Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }
}

impl ConnectError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), is_end_of_sandbox: false }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn deadline() -> Self {
        Self::new(Code::DeadlineExceeded, "the request took longer than its Connect-Timeout-Ms")
    }
}

impl IntoResponse for ConnectError {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_follow_the_connect_protocol() {
        let error = ConnectError::new(Code::AlreadyExists, "it is there");
        assert_eq!(serde_json::to_string(&error).unwrap(), r#"{"code":"already_exists","message":"it is there"}"#);
        assert_eq!(error.into_response().status(), 409);
        assert_eq!(serde_json::to_string(&Code::DeadlineExceeded).unwrap(), r#""deadline_exceeded""#);
    }
}
