//! Requests that reach no sandbox, in the words that clients tell apart.

use super::address::AddressError;
use crate::registry::error::RegistryError;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

/// See the module.
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
    /// It may not come in.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// Nothing listens there.
    #[error("The sandbox is running but port is not open")]
    PortClosed { id: String, port: u16 },
    /// It cannot be reached.
    #[error("{0}")]
    Registry(RegistryError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoAddress | Self::Address(_) => StatusCode::BAD_REQUEST,
            // What E2B's own edge answers; its clients know these apart by message.
            Self::NotFound(_) | Self::Paused(_) | Self::PortClosed { .. } => StatusCode::BAD_GATEWAY,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Registry(RegistryError::Full(_) | RegistryError::ShuttingDown) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Registry(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut body = json!({ "code": status.as_u16(), "message": self.to_string() });
        match &self {
            Self::NotFound(id) | Self::Paused(id) => body["sandboxId"] = json!(id),
            Self::PortClosed { id, port } => {
                body["sandboxId"] = json!(id);
                body["port"] = json!(port);
            }
            _ => {}
        }
        (status, Json(body)).into_response()
    }
}
