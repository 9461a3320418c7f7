//! Requests that reach no sandbox, in the words that clients tell apart.

use super::address::AddressError;
use crate::{
    channel::failure::{Failure, Why},
    concurrency::NoPlace,
    deadline::Late,
};
use axum::{
    Json,
    http::{StatusCode, header::RETRY_AFTER},
    response::{Html, IntoResponse, Response},
};
use serde_json::json;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// It names no sandbox.
    #[error("the request names no sandbox: send E2b-Sandbox-Id, or use the host PORT-ID.DOMAIN")]
    NoAddress,
    /// It names none that could be.
    #[error("{0}")]
    Address(AddressError),
    /// There is none.
    #[error("The sandbox was not found")]
    NotFound(String),
    /// It rests.
    #[error("The sandbox was not found: it is paused, connect to it to resume it")]
    Paused(String),
    /// There is no place for it.
    #[error("{0}; try again in a moment")]
    Busy(NoPlace),
    /// The sandbox did not begin to answer in time.
    #[error("the sandbox did not answer in time")]
    Late(Late),
    /// It may not come in.
    #[error("{0}")]
    Unauthorized(Unauthorized),
    /// The sandbox's own ports want a token that the request does not have.
    #[error("{problem}")]
    NoTrafficToken { id: String, problem: &'static str },
    /// Too many tokens from there did not match.
    #[error("this address sent too many invalid tokens")]
    Slowed(Duration),
    /// Nothing listens there.
    #[error("The sandbox is running but port is not open")]
    PortClosed { id: String, port: u16 },
    /// Something listens there and does not answer as it should, or the sandbox does not.
    #[error("The sandbox's port gives no answer: {problem}")]
    Unreachable { id: String, port: u16, problem: String },
    /// It is no request that could be handed on.
    #[error("the request's target is malformed")]
    Malformed,
    /// It cannot be reached.
    #[error("{0}")]
    Launcher(Failure),
}

/// Why a request may not reach a sandbox's commands and files. The texts are E2B's: clients show them, and programs compare
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unauthorized {
    /// A request that only the token opens has none, or another.
    #[error("unauthorized access, please provide a valid access token or method signing if supported")]
    Token,
    /// A request about a file has another token.
    #[error("access token present in header but does not match")]
    FileToken,
    /// A request about a file has neither token nor signature.
    #[error("missing signature query parameter")]
    NoSignature,
    /// The signature is not that of this file, operation, user and sandbox.
    #[error("invalid signature")]
    Signature,
    /// It was, until its time was over.
    #[error("signature is already expired")]
    Expired,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoAddress | Self::Address(_) | Self::Malformed => StatusCode::BAD_REQUEST,
            // What E2B's own edge answers; its clients know these apart by message.
            Self::NotFound(_) | Self::Paused(_) | Self::PortClosed { .. } | Self::Unreachable { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::Busy(_) | Self::Slowed(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::NoTrafficToken { .. } => StatusCode::FORBIDDEN,
            Self::Launcher(Failure { why: Why::Full | Why::ShuttingDown, .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Launcher(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// As a page where a person looks at it.
    pub(crate) fn answer(self, wants_page: bool) -> Response {
        let (Self::PortClosed { id, port } | Self::Unreachable { id, port, .. }) = &self else {
            return self.into_response();
        };
        if !wants_page {
            return self.into_response();
        }
        let title = match &self {
            Self::PortClosed { .. } => format!("Nothing listens on port {port}"),
            _ => format!("Port {port} gives no answer"),
        };
        // IDs are letters and digits, and what a guest says is not shown.
        let page = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>\
             <body style=\"font-family: sans-serif; max-width: 40em; margin: 10vh auto; padding: 0 1em\">\
             <h1>{title}</h1><p>The sandbox <code>{id}</code> is running. Start a server in it that listens on port \
             {port} of 127.0.0.1 or 0.0.0.0, then load this page again.</p>"
        );
        (self.status(), Html(page)).into_response()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let retry_after = match self {
            Self::Busy(_) => Some(1),
            Self::Slowed(wait) => Some(wait.as_secs().saturating_add(1)),
            _ => None,
        };
        if let Some(seconds) = retry_after {
            let body = Json(json!({ "code": status.as_u16(), "message": self.to_string() }));
            return (status, [(RETRY_AFTER, seconds.to_string())], body).into_response();
        }
        let mut body = json!({ "code": status.as_u16(), "message": self.to_string() });
        match &self {
            Self::NotFound(id) | Self::Paused(id) | Self::NoTrafficToken { id, .. } => body["sandboxId"] = json!(id),
            Self::PortClosed { id, port } | Self::Unreachable { id, port, .. } => {
                body["sandboxId"] = json!(id);
                body["port"] = json!(port);
            }
            _ => {}
        }
        (status, Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn body(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn clients_tell_a_closed_port_from_a_sandbox_that_is_gone() {
        let closed = || Refusal::PortClosed { id: "abcdefgh".into(), port: 8000 };
        let response = closed().answer(false);
        assert_eq!(response.status(), 502);
        let said: serde_json::Value = serde_json::from_str(&body(response).await).unwrap();
        let expected = json!({
            "sandboxId": "abcdefgh", "message": "The sandbox is running but port is not open", "port": 8000, "code": 502,
        });
        assert_eq!(said, expected);
        let page = closed().answer(true);
        assert_eq!(
            (page.status().as_u16(), &page.headers()["content-type"]),
            (502, &"text/html; charset=utf-8".parse().unwrap())
        );
        assert!(body(page).await.contains("Nothing listens on port 8000"));
        let gone = body(Refusal::NotFound("abcdefgh".into()).into_response()).await;
        assert!(gone.contains("was not found"), "{gone}");
    }

    #[tokio::test]
    async fn a_page_has_nothing_that_a_guest_said() {
        let problem = "<script>alert(1)</script>".to_owned();
        let page = Refusal::Unreachable { id: "abcdefgh".into(), port: 1, problem }.answer(true);
        assert!(!body(page).await.contains("script"));
    }
}
