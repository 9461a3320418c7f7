//! Why something was not done to a sandbox; `control_plane` gives each its HTTP status.

use super::network::egress::error::EgressError;
use crate::{quotas::starts::StartsError, store::StoreError, templates::TemplateError, volumes::VolumeError};
use sandboxvm_manager::{
    ControlError, CreateError, DirectoryError, EndError, FindError, ForkError, NetworkSpecError, RecordError,
    RefusalKind, RemoveError, ResetError, SandboxName, SnapshotError, SuperviseError,
};
use std::error::Error;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// There is no such sandbox, or it is not the caller's.
    #[error("sandbox {0} was not found")]
    Unknown(String),
    /// It rests, and nothing was said of waking it.
    #[error("sandbox {0} is paused; connect to it to resume it")]
    Paused(String),
    /// Its agent was to answer first.
    #[error("cannot pause sandbox {0}: its guest agent does not respond")]
    Unresponsive(String),
    /// Its guest was to write everything to its disk.
    #[error("cannot snapshot sandbox {0}: its guest does not write its data to disk")]
    Unwritten(String),
    /// Its volumes may change while its memory is on disk.
    #[error("sandbox {0} has volumes: it can be paused only without memory, and cannot be forked or snapshotted")]
    HasVolumes(String),
    /// Its volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// It was to be paused.
    #[error("sandbox {0} is already paused")]
    AlreadyPaused(String),
    /// It is to be made from something that the caller cannot use.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The key has as many as it may have.
    #[error("this API key has reached its limit of {0} sandboxes; kill one first")]
    Quota(u32),
    /// The key has as many snapshots as it may have.
    #[error("this API key has reached its limit of {0} snapshots; delete one first")]
    SnapshotQuota(u32),
    /// The key's sandboxes and snapshots take all the disk they may.
    #[error(
        "the sandboxes and snapshots of this API key use {used_mib} MiB of disk, {more_mib} MiB more may be needed, and the \
         limit is {most_mib} MiB; delete a snapshot or kill a sandbox first"
    )]
    StorageQuota {
        /// Disk space in use.
        used_mib: u64,
        /// What one more may take.
        more_mib: u64,
        /// Maximum.
        most_mib: u64,
    },
    /// The audit logs of the key's sandboxes take all the disk they may.
    #[error(
        "the audit logs of the sandboxes of this API key use {used_mib} MiB, and the limit is {most_mib} MiB; logs are \
         removed some time after their sandboxes"
    )]
    AuditQuota {
        /// Disk space in use.
        used_mib: u64,
        /// Maximum.
        most_mib: u64,
    },
    /// What its client says of the network has no meaning.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// It cannot have such a network.
    #[error(transparent)]
    Network(#[from] NetworkSpecError),
    /// Its network is not known.
    #[error(transparent)]
    NetworkRecord(#[from] RecordError),
    /// A network was asked for.
    #[error("the sandbox cannot have a network: {0}")]
    NoCard(String),
    /// Its network has no processes, so nothing passes.
    #[error("the network of the sandbox is not in force: {0}")]
    NetworkDown(Box<SuperviseError>),
    /// The request asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The server is ending.
    #[error("the server is shutting down; try again in a moment")]
    ShuttingDown,
    /// The host cannot take it now.
    #[error("{0}")]
    Full(String),
    /// No machine.
    #[error("cannot create the sandbox: {0}")]
    Create(Box<CreateError>),
    /// No copies.
    #[error("cannot fork the sandbox: {0}")]
    Fork(Box<ForkError>),
    /// No snapshot.
    #[error("cannot create the snapshot: {0}")]
    Snapshot(SnapshotError),
    /// It did not come back.
    #[error("cannot resume the sandbox: {0}")]
    Resume(Box<ResetError>),
    /// Its VMM did not obey a request.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It does not end.
    #[error(transparent)]
    End(#[from] EndError),
    /// It cannot be removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// Its files cannot be read.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Its files cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its record cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Work apart from requests did not end well.
    #[error("a task of the server failed: {0}")]
    Task(std::io::Error),
    /// The system gave no randomness.
    #[error("cannot create a name: {0}")]
    Entropy(std::io::Error),
}

impl RegistryError {
    /// A machine that is restored has the devices that the snapshot has.
    pub(super) fn no_card(snapshot: &SandboxName) -> Self {
        Self::NoCard(format!("the machine of snapshot {snapshot} has no network card"))
    }

    /// Returns of what kind the refusal of a VMM is, if one refused and says so.
    pub(crate) fn vmm_refusal(&self) -> Option<RefusalKind> {
        let cause: &(dyn Error + 'static) = match self {
            Self::Create(error) => error.as_ref(),
            Self::Fork(error) => error.as_ref(),
            Self::Snapshot(error) => error,
            Self::Resume(error) => error.as_ref(),
            Self::Control(error) => error,
            _ => return None,
        };
        std::iter::successors(Some(cause), |error| (*error).source())
            .find_map(|error| error.downcast_ref::<ControlError>()?.refusal())
    }
}

impl From<CreateError> for RegistryError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Admission(refused) => Self::Full(refused.to_string()),
            CreateError::Environment { .. } => Self::Invalid(error.to_string()),
            CreateError::Network(error) => Self::Network(error),
            CreateError::NoCard(snapshot) => Self::no_card(&snapshot),
            error => Self::Create(Box::new(error)),
        }
    }
}

impl From<SnapshotError> for RegistryError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Admission(refused) => Self::Full(refused.to_string()),
            error => Self::Snapshot(error),
        }
    }
}

impl From<ForkError> for RegistryError {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::Admission(refused) => Self::Full(refused.to_string()),
            ForkError::Count(_) => Self::Invalid(error.to_string()),
            error => Self::Fork(Box::new(error)),
        }
    }
}

impl From<ResetError> for RegistryError {
    fn from(error: ResetError) -> Self {
        match error {
            ResetError::Admission(refused) => Self::Full(refused.to_string()),
            error => Self::Resume(Box::new(error)),
        }
    }
}

impl From<SuperviseError> for RegistryError {
    fn from(error: SuperviseError) -> Self {
        match error {
            SuperviseError::NetworkSpec(error) => Self::Network(error),
            SuperviseError::NoCard(_) => Self::NoCard("its machine was made without a network card".to_owned()),
            error => Self::NetworkDown(Box::new(error)),
        }
    }
}

impl From<StartsError> for RegistryError {
    fn from(error: StartsError) -> Self {
        match error {
            StartsError::TooMany => Self::Full(error.to_string()),
            StartsError::ShuttingDown => Self::ShuttingDown,
        }
    }
}
