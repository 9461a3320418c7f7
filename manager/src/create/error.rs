//! Why no sandbox was made.

use crate::{
    audit::AuditError,
    guest::{agent::AgentError, error::ExecError},
    home::{directory::DirectoryError, host::HostError, names::NameError},
    limits::admission::AdmissionError,
    record::RecordError,
    snapshot::{error::SnapshotError, lineage::LineageError},
    vmm::{control::ControlError, descriptors::LaunchError, last_words::LastWords},
};
use sandboxvm_images::{bundle::BundleError, template::TemplateError};
use sandboxvm_protocol::vmm::ExitReason;
use std::io;
use std::time::Duration;

/// Why a machine did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It ended, and said why.
    #[error("the sandbox ended while it was booting: {0}")]
    Ended(ExitReason),
    /// Its VMM ended without a word.
    #[error("the VMM ended while the sandbox was booting ({0})")]
    Vanished(String),
    /// It goes on from a snapshot, and its agent does not answer.
    #[error("the sandbox was restored, but its guest agent did not respond within {} s", .0.as_secs())]
    Silent(Duration),
    /// It took too long.
    #[error("the sandbox did not boot within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Why no sandbox was made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The host cannot take it.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// Kernel, image, agent or VMM are missing or broken.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// No writable disk.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// A variable that no process can have.
    #[error("invalid environment variable {variable:?}: {problem}")]
    Environment {
        /// Its name, cut short; never its value, which may be a secret.
        variable: String,
        /// Why.
        problem: String,
    },
    /// The name is taken.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The record cannot be written.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No snapshot to start from.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The record of its files cannot be written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The host cannot be told from others.
    #[error("{0}")]
    Host(#[from] HostError),
    /// The VMM did not start.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The machine did not come up.
    #[error("{cause}{last_words}")]
    Start {
        /// Why.
        cause: StartError,
        /// What its logs end with.
        last_words: LastWords,
    },
    /// A machine restored ahead of its use.
    #[error("a machine of the pool does not respond: {0}")]
    Armed(ControlError),
    /// A machine that has to boot when it is wanted.
    #[error("cannot keep a machine in a pool that boots from the disk of a snapshot")]
    NotArmed,
    /// Its VMM does not keep what it may send, or how fast its disks are served.
    #[error("cannot enforce the limits of output and disks: {0}")]
    VmmLimits(ControlError),
    /// A machine that was to become a ready snapshot did not run what it was to.
    #[error("cannot warm up a new machine: {0}")]
    Warm(#[from] AgentError),
    /// The machine did not take its identity.
    #[error("cannot give the sandbox its identity: {0}")]
    Identity(Box<ExecError>),
    /// The system gave no randomness for an ID.
    #[error("cannot create an ID for the sandbox: {0}")]
    Entropy(io::Error),
    /// What cannot be logged is not done.
    #[error("{0}")]
    Audit(#[from] AuditError),
}

impl CreateError {
    /// True when a snapshot's own files are to blame.
    pub(crate) fn is_bad_snapshot(&self) -> bool {
        match self {
            Self::Start { cause: StartError::Ended(ExitReason::BadConfig { .. }), .. }
            | Self::Armed(ControlError::Ended(ExitReason::BadConfig { .. })) => true,
            Self::Snapshot(error) => error.is_damage(),
            _ => false,
        }
    }
}
