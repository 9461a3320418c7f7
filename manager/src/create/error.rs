//! Why a sandbox was not created.

use crate::{
    audit::AuditError,
    guest::{connection::agent::AgentError, error::ExecError},
    home::{directory::DirectoryError, host::HostError, names::NameError},
    limits::admission::AdmissionError,
    mounts::{MountsError, ShareRootError},
    network::{secrets::SecretsError, spec::NetworkSpecError},
    record::RecordError,
    snapshot::{error::SnapshotError, lineage::LineageError},
    supervision::SuperviseError,
    vmm::{control::ControlError, descriptors::LaunchError, last_words::LastWords},
    volumes::VolumeError,
    workspace::WorkspaceError,
};
use sandboxvm_images::{bundle::BundleError, template::TemplateError};
use sandboxvm_protocol::{ids::SandboxName, vmm::ExitReason};
use std::io;
use std::time::Duration;

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine ended and reported a reason.
    #[error("the sandbox ended while it was booting: {0}")]
    Ended(ExitReason),
    /// The VMM ended without reporting a reason.
    #[error("the VMM ended while the sandbox was booting ({0})")]
    Vanished(String),
    /// The machine was restored from a snapshot, and its agent does not answer.
    #[error("the sandbox was restored, but its guest agent did not respond within {} s", .0.as_secs())]
    Silent(Duration),
    /// The boot took too long.
    #[error("the sandbox did not boot within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Why a sandbox was not created. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A directory of the host cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareRootError),
    /// The host does not have room for the sandbox.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// VMM, kernel, image or agent is missing or damaged.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// The template of the writable disk cannot be made or opened.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// An environment variable that no process can have.
    #[error("invalid environment variable {variable:?}: {problem}")]
    Environment {
        /// Name of the variable, cut to its first 40 characters. The value is never shown, because
        /// it may be a secret.
        variable: String,
        /// Why the variable is invalid.
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
    /// The services that the sandbox is to have cannot be written down.
    #[error("{0}")]
    Services(#[from] SuperviseError),
    /// The sandbox cannot have the network that was asked for.
    #[error("{0}")]
    Network(#[from] NetworkSpecError),
    /// The values of secrets cannot be kept.
    #[error("cannot keep the secrets of the sandbox: {0}")]
    Secrets(#[from] SecretsError),
    /// A machine that is restored has the devices that the snapshot has.
    #[error("cannot give the sandbox a network: the machine of snapshot {0} has no network card")]
    NoCard(SandboxName),
    /// The sandbox cannot have this workspace.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The sandbox cannot have these mounts.
    #[error(transparent)]
    Mounts(#[from] MountsError),
    /// A volume cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The snapshot to start from does not exist or cannot be used.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The lineage of the sandbox cannot be written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The identity of the host cannot be read.
    #[error("{0}")]
    Host(#[from] HostError),
    /// The VMM did not start.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The machine did not start.
    #[error("{cause}{last_words}")]
    Start {
        /// The cause.
        cause: StartError,
        /// The last lines of its logs.
        last_words: LastWords,
    },
    /// A machine of the pool failed or does not respond.
    #[error("a machine of the pool does not respond: {0}")]
    Armed(ControlError),
    /// A pool cannot hold machines that have to boot when they are used.
    #[error("cannot keep a machine in a pool that boots from the disk of a snapshot")]
    NotArmed,
    /// The VMM does not accept the limits of its output and of its disks.
    #[error("cannot enforce the limits of output and disks: {0}")]
    VmmLimits(ControlError),
    /// A machine that was to become a ready snapshot could not run the warm-up commands.
    #[error("cannot warm up a new machine: {0}")]
    Warm(#[from] AgentError),
    /// The machine did not accept its identity.
    #[error("cannot give the sandbox its identity: {0}")]
    Identity(Box<ExecError>),
    /// The system provided no randomness for an ID.
    #[error("cannot create an ID for the sandbox: {0}")]
    Entropy(io::Error),
    /// The audit log cannot be written, so the sandbox was not created.
    #[error("{0}")]
    Audit(#[from] AuditError),
}

impl CreateError {
    /// Returns true if the files of a snapshot are the cause.
    pub(crate) fn is_bad_snapshot(&self) -> bool {
        match self {
            Self::Start { cause: StartError::Ended(ExitReason::BadConfig { .. }), .. }
            | Self::Armed(ControlError::Ended(ExitReason::BadConfig { .. })) => true,
            Self::Snapshot(error) => error.is_damage(),
            _ => false,
        }
    }
}
