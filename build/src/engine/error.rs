//! Why a build failed, with the place in the Dockerfile.

use super::machine::MachineError;
use crate::{context::ContextError, dockerfile::DockerfileError};
use std::io;

/// A build failed. The tag is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The Dockerfile.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// An image is missing, or a machine does not start.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A step.
    #[error("{file}:{line}: {problem}")]
    Step {
        /// Name of the Dockerfile.
        file: String,
        /// Line of the instruction.
        line: usize,
        /// Position of the step in its stage, from 1.
        step: usize,
        /// Its first line.
        text: String,
        /// What is wrong.
        problem: StepProblem,
    },
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepProblem {
    /// The process of a `RUN` failed.
    #[error("the command exited with code {code}")]
    Exit {
        /// Exit code, as a shell reports it.
        code: u8,
        /// Its last lines, at most 20. Secrets are masked. Hostile text.
        tail: String,
    },
    /// Files of the context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A file of the host.
    #[error("cannot write an archive: {0}")]
    Archive(#[from] io::Error),
    /// An archive is not accepted.
    #[error("invalid archive: {0}")]
    Hostile(#[from] sandboxvm_archive::ReadError),
    /// An archive of another machine, a client or a cache has a name that is not accepted.
    #[error("invalid archive: file {name:?}: {problem}")]
    BadName {
        /// Name of the file. Hostile text.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A source of `COPY --from`.
    #[error("source {0:?} does not exist in the stage or image")]
    Missing(String),
    /// Several sources need a directory.
    #[error("invalid target {0:?}: several sources need a directory, whose name ends with a slash")]
    NotADirectory(String),
    /// A user or group.
    #[error("the machine has no {kind} {name:?}")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A stage that the step copies from.
    #[error(transparent)]
    Stage(Box<BuildError>),
    /// A file of `ADD` cannot be downloaded.
    #[error("cannot download {url}: {problem}")]
    Download {
        /// Its URL.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// A git repository of `ADD`.
    #[error("ADD of the git repository {0:?} is not supported: its content would be read outside of a sandbox")]
    Repository(String),
    /// A secret was not given.
    #[error("secret {0:?} is required, and the build has none of this ID")]
    Secret(String),
    /// Something that this version does not execute.
    #[error("{0} is not supported")]
    Unsupported(String),
}
