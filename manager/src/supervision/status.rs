//! The services of a sandbox, as they are shown.

use super::{LOCK, SuperviseError, file::Supervision, publish::PublishedPort};
use crate::{
    guest::in_use,
    home::{
        directory::{DirectoryError, SandboxDirectory},
        locks::is_held_exclusively,
    },
    limits::lifetime::{IdleRule, TimeToLive},
    sandbox::Sandbox,
};
use serde::Serialize;

/// The services of a sandbox and their state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SupervisionStatus {
    /// True while a supervisor runs. False when it was killed; the next command on the sandbox
    /// starts another one.
    pub supervised: bool,
    /// True if the idle rule paused the sandbox.
    pub idle_paused: bool,
    /// The time to live.
    pub ttl: Option<TimeToLive>,
    /// Rest of the time to live in milliseconds.
    pub ttl_left_ms: Option<u64>,
    /// The idle rule.
    pub idle: Option<IdleRule>,
    /// The published ports.
    pub ports: Vec<PublishedPort>,
    /// True if the sandbox has a network. What it may reach is in a separate record.
    pub network: bool,
    /// True if the sandbox has live shares.
    pub shares: bool,
}

impl Sandbox {
    /// Returns the services of the sandbox, or `None` if it has none.
    ///
    /// # Errors
    /// When the files of the sandbox cannot be read.
    pub fn supervision(&self) -> Result<Option<SupervisionStatus>, SuperviseError> {
        let Some(supervision) = Supervision::read(&self.directory)?.filter(|supervision| !supervision.is_empty())
        else {
            return Ok(None);
        };
        let left = supervision.ttl.as_ref().map(|ttl| ttl.deadline.left().as_millis());
        Ok(Some(SupervisionStatus {
            supervised: is_supervised(&self.directory)?,
            idle_paused: in_use::is_idle_paused(&self.directory),
            ttl: supervision.ttl.map(|ttl| ttl.rule),
            ttl_left_ms: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
            idle: supervision.idle,
            network: supervision.network.is_some(),
            shares: supervision.shares,
            ports: supervision.ports.into_iter().map(|port| port.shown).collect(),
        }))
    }
}

/// Returns true while a supervisor holds the lock.
pub(crate) fn is_supervised(directory: &SandboxDirectory) -> Result<bool, DirectoryError> {
    is_held_exclusively(directory, LOCK)
}
