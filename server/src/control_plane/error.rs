//! Errors in the shape that E2B's clients turn into their own exceptions: `{code, message}` and a status that says which.

use crate::channel::failure::{Failure, Why};
use axum::{
    Json,
    extract::rejection::{JsonRejection, QueryRejection},
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::time::Duration;

/// An answer that is none.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    /// Too much now; clients wait so long and come again.
    pub(crate) fn later(message: impl Into<String>, retry_after: Duration) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, message: message.into(), retry_after: Some(retry_after) }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// What E2B has and this server has not.
    pub(crate) fn unsupported(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not supported by sandboxvm; see docs/e2b.md"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(json!({ "code": self.status.as_u16(), "message": self.message }));
        let mut response = (self.status, body).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let status = match failure.why {
            Why::Unauthorized => StatusCode::UNAUTHORIZED,
            Why::NotFound => StatusCode::NOT_FOUND,
            Why::Paused | Why::AlreadyPaused => StatusCode::CONFLICT,
            Why::Forbidden => StatusCode::FORBIDDEN,
            Why::Invalid => StatusCode::BAD_REQUEST,
            Why::Quota => return Self::later(failure.message, Duration::from_secs(5)),
            Why::Full => {
                return Self {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    message: failure.message,
                    retry_after: Some(Duration::from_secs(5)),
                };
            }
            Why::ShuttingDown | Why::Unready | Why::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            Why::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Why::Conflict => StatusCode::CONFLICT,
            Why::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Why::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %failure, "a request failed");
        }
        Self::new(status, failure.message)
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::error::RegistryError;
    use sandboxvm_manager::{ControlError, RefusalKind, SnapshotError, VmmRefusal};

    #[test]
    fn status_of_a_request_that_a_vmm_refused_depends_on_the_kind() {
        let status = |kind| {
            let refusal = VmmRefusal { kind, message: "cannot write the snapshot".to_owned() };
            let error = SnapshotError::from(ControlError::Refused(refusal));
            ApiError::from(Failure::from(RegistryError::from(error))).status
        };
        assert_eq!(status(Some(RefusalKind::NoSpace)), StatusCode::INSUFFICIENT_STORAGE);
        assert_eq!(status(Some(RefusalKind::Busy)), StatusCode::CONFLICT);
        assert_eq!(status(Some(RefusalKind::Host)), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(status(None), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
