//! `/files`: content of files, out and in. Memory is a few pieces of 64 KiB whatever is moved, and a file is replaced as a
//! whole or not at all.

mod download;
mod form;
mod metadata;
mod signature;
mod upload;

pub(super) use signature::{check, signer};

use super::{
    connect::{Call, Code, ConnectError},
    state::SharedTarget,
};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Extension},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use sandboxvm_manager::{CText, FileError, FileErrorKind};
use serde::Deserialize;
use serde_json::json;
use tower_http::{
    compression::{CompressionLayer, Predicate},
    decompression::RequestDecompressionLayer,
};

/// Where files are read and written.
pub(super) const ROUTE: &str = "/files";

pub(super) fn router() -> Router {
    let is_wanted =
        |_: StatusCode, _: axum::http::Version, _: &axum::http::HeaderMap, marks: &axum::http::Extensions| {
            marks.get::<download::Compress>().is_some()
        };
    Router::new()
        .route(ROUTE, get(download::read).post(upload::write))
        .layer(DefaultBodyLimit::disable())
        .layer(CompressionLayer::new().compress_when(Wanted(is_wanted)))
        .layer(RequestDecompressionLayer::new())
}

/// What is compressed is said by who answers.
#[derive(Clone)]
struct Wanted<F>(F);

impl<F> Predicate for Wanted<F>
where
    F: Fn(StatusCode, axum::http::Version, &axum::http::HeaderMap, &axum::http::Extensions) -> bool + Clone,
{
    fn should_compress<B: axum::body::HttpBody>(&self, response: &axum::http::Response<B>) -> bool {
        (self.0)(response.status(), response.version(), response.headers(), response.extensions())
    }
}

/// What a request says in its address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Query {
    pub(super) path: Option<String>,
    pub(super) username: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) signature_expiration: Option<u64>,
}

impl Query {
    /// Rejects a parameter that is given twice: otherwise one could be checked and the other used.
    pub(super) fn of(uri: &Uri) -> Result<Self, FilesError> {
        serde_urlencoded::from_str(uri.query().unwrap_or_default())
            .map_err(|error| FilesError::new(StatusCode::BAD_REQUEST, format!("the address: {error}")))
    }

    fn call(&self, Extension(target): Extension<SharedTarget>) -> Result<Call, FilesError> {
        let user = match self.username.as_deref() {
            None | Some("") => target.entry().record().user,
            Some(user) => user.to_owned(),
        };
        let user = CText::try_from(user.as_str())
            .map_err(|error| FilesError::new(StatusCode::BAD_REQUEST, format!("username: {error}")))?;
        Ok(Call { target, user, timeout: None, keepalive: None })
    }
}

/// Why nothing was read or written, as clients tell errors apart here: by HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct FilesError {
    status: StatusCode,
    message: String,
}

impl FilesError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// With E2B's words where it is the user that the guest does not have.
    fn of_user(self, user: &CText) -> Self {
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
    fn the_address_says_what_is_meant_once() {
        let of = |uri: &'static str| Query::of(&Uri::from_static(uri));
        let query = of("/files?path=%2Fa%20b&username=root&signature=v1_x&signature_expiration=5&new=1").unwrap();
        assert_eq!((query.path.as_deref(), query.signature_expiration), (Some("/a b"), Some(5)));
        assert_eq!(of("/files").unwrap(), Query::default());
        assert!(of("/files?path=a&path=b").is_err());
        assert!(of("/files?signature_expiration=-1").is_err());
    }

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
