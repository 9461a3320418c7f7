//! Why a VMM is not confined.

use rustix::io::Errno;
use std::io;

/// Why the process is not confined; it must not run a guest then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A step failed.
    #[error("cannot confine the VMM: {step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The system call filter.
    #[error("cannot confine the VMM: the system call filter was not taken: {0}")]
    Filter(#[from] seccompiler::Error),
}

pub(super) fn step(step: &'static str) -> impl FnOnce(io::Error) -> ConfineError {
    move |source| ConfineError::Step { step, source }
}

pub(super) fn failed(what: &'static str) -> impl FnOnce(Errno) -> ConfineError {
    move |error| step(what)(error.into())
}
