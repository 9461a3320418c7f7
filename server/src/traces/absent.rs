//! What stands in for the export of traces in a build without the feature `otlp`: nothing is exported, and a request for it is
//! refused.

use super::TracesError;
use axum::http::HeaderMap;
use tracing::Span;
use tracing_subscriber::layer::Identity;

/// Traces that are being exported. This build exports none, so there is no value of this type.
#[derive(Debug)]
pub enum Traces {}

impl Traces {
    /// Refuses to export traces.
    ///
    /// # Errors
    /// Always [`TracesError::NotBuilt`].
    pub fn to(_endpoint: &str) -> Result<Self, TracesError> {
        Err(TracesError::NotBuilt)
    }

    /// Returns a layer that does nothing.
    #[must_use]
    pub fn layer(&self) -> Identity {
        match *self {}
    }
}

/// Does nothing: no span of this build is exported.
pub(crate) fn continue_from(_headers: &HeaderMap, _span: &Span) {}

/// Returns nothing: no span of this build is exported.
pub(crate) fn current() -> Option<String> {
    None
}

/// Returns no span: none of this build is exported.
pub(crate) fn continued(_name: &'static str, _parent: Option<&str>) -> Span {
    Span::none()
}
