//! Why the launcher did not do something, on its way to the front, which gives it a status of HTTP.

use crate::{
    registry::{builds::BuildError, error::RegistryError, network::egress::error::EgressError},
    templates::TemplateError,
    volumes::VolumeError,
};
use sandboxvm_manager::{NetworkSpecError, RefusalKind};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) why: Why,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Why {
    /// The API key is not valid, or not any more.
    Unauthorized,
    /// It is not there, or belongs to another key.
    NotFound,
    Forbidden,
    Invalid,
    Paused,
    AlreadyPaused,
    /// The key has reached a quota.
    Quota,
    /// The host cannot take it now.
    Full,
    ShuttingDown,
    /// The guest did not do its part.
    Unready,
    /// The host's disk is full.
    NoSpace,
    /// The host lacks memory or another resource for it.
    Exhausted,
    /// The machine does something else now, or is in a state that does not allow it.
    Conflict,
    /// E2B has it, and this server has not.
    Unsupported,
    Internal,
}

impl Failure {
    pub(crate) fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Why::Invalid, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Why::Internal, message)
    }

    pub(crate) fn no_sandbox(id: &str) -> Self {
        RegistryError::Unknown(id.to_owned()).into()
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let why = match &error {
            BuildError::Unknown(_) | BuildError::UnknownBuild(_) | BuildError::UnknownTag(_) => Why::NotFound,
            BuildError::Invalid(_) | BuildError::NotWaiting(_) => Why::Invalid,
            BuildError::Forbidden(_) => Why::Forbidden,
            BuildError::Unsupported(_) => Why::Unsupported,
            BuildError::Quota(_) | BuildError::Templates(_) => Why::Quota,
            BuildError::Registry(_) => {
                let BuildError::Registry(error) = error else { unreachable!("it was matched above") };
                return error.into();
            }
        };
        Self::new(why, error.to_string())
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        let why = match &error {
            VolumeError::Unknown(_) => Why::NotFound,
            VolumeError::Name(_) => Why::Invalid,
            VolumeError::Taken(_) | VolumeError::InUse(_) => Why::Conflict,
            VolumeError::Quota(_) => Why::Quota,
            VolumeError::Files(_) | VolumeError::Store(_) | VolumeError::Entropy(_) => Why::Internal,
        };
        Self::new(why, error.to_string())
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        if let RegistryError::Volume(error) = error {
            return error.into();
        }
        let why = match &error {
            RegistryError::Unknown(_) | RegistryError::Template(TemplateError::Unknown(_)) => Why::NotFound,
            RegistryError::Paused(_) => Why::Paused,
            RegistryError::AlreadyPaused(_) => Why::AlreadyPaused,
            RegistryError::Template(TemplateError::Forbidden(_)) => Why::Forbidden,
            RegistryError::Egress(EgressError::Unsupported(_) | EgressError::Markers { .. }) => Why::Unsupported,
            RegistryError::Network(NetworkSpecError::NotPermitted(_)) => Why::Forbidden,
            // Clients take a conflict for a sandbox that is paused already.
            RegistryError::HasVolumes(_)
            | RegistryError::Invalid(_)
            | RegistryError::Egress(_)
            | RegistryError::Network(_) => Why::Invalid,
            RegistryError::NoCard(_) => Why::Conflict,
            RegistryError::Quota(_)
            | RegistryError::SnapshotQuota(_)
            | RegistryError::StorageQuota { .. }
            | RegistryError::AuditQuota { .. } => Why::Quota,
            RegistryError::Full(_) => Why::Full,
            RegistryError::ShuttingDown => Why::ShuttingDown,
            RegistryError::Unresponsive(_) | RegistryError::Unwritten(_) => Why::Unready,
            _ => match error.vmm_refusal() {
                Some(RefusalKind::NoSpace) => Why::NoSpace,
                Some(RefusalKind::Resources) => Why::Exhausted,
                Some(RefusalKind::Busy | RefusalKind::WrongPhase | RefusalKind::Superseded) => Why::Conflict,
                _ => Why::Internal,
            },
        };
        Self::new(why, error.to_string())
    }
}
