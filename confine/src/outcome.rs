//! How a step of the confinement ends: it is taken, it failed, or the host refused it and others cover for it.

use rustix::io::Errno;
use std::{fmt, io};

/// The process is not confined, and must not serve.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine the {process}: {step}: {source}")]
pub struct ConfineError {
    pub(super) process: &'static str,
    pub(super) step: &'static str,
    pub(super) source: io::Error,
}

/// A part of the confinement that a host can refuse, and that others cover: the system call filter keeps the process from
/// files, sockets and processes in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// To be ended first when memory is short.
    EndsFirst,
    /// A user that no other process has.
    OwnUser,
    /// Empty namespaces.
    Namespaces,
    /// An empty root.
    EmptyRoot,
}

/// A part of the confinement that the host refused.
#[derive(Debug)]
pub struct Missing {
    /// The part.
    pub part: Part,
    /// What the host said.
    pub error: io::Error,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.part {
            Part::EndsFirst => "is not the first process to end when memory is short",
            Part::OwnUser => "shares its user with other processes",
            Part::Namespaces => "keeps the namespaces of this host",
            Part::EmptyRoot => "keeps the root directory of this host",
        };
        write!(f, "{what}: {}", self.error)
    }
}

/// Names the step that failed.
pub(super) type Step = (&'static str, io::Error);

pub(super) fn failed(step: &'static str) -> impl FnOnce(Errno) -> Step {
    move |error| (step, error.into())
}
