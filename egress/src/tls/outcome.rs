//! How a connection whose TLS is ended came to its end.

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was closed.
    Closed,
    /// It failed.
    Reset,
    /// It was refused before any request, for this reason.
    Refused(String),
}
