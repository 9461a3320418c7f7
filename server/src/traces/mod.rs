//! Traces of requests for an OpenTelemetry collector. The feature `otlp` decides whether a build can export them: the
//! libraries for that are a tenth of the whole program's compile time, and most installations have no collector.

#[cfg(not(feature = "otlp"))]
mod absent;
#[cfg(feature = "otlp")]
mod export;

#[cfg(not(feature = "otlp"))]
pub use absent::Traces;
#[cfg(not(feature = "otlp"))]
pub(crate) use absent::{continue_from, continued, current};
#[cfg(feature = "otlp")]
pub use export::Traces;
#[cfg(feature = "otlp")]
pub(crate) use export::{continue_from, continued, current};

/// Why no traces are exported.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The address of the collector is not usable.
    #[error("cannot export traces to {endpoint}: {problem}")]
    Endpoint {
        /// What was asked for.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// This program was built without the feature `otlp`.
    #[error("this build cannot export traces: it was built without the feature `otlp`")]
    NotBuilt,
}
