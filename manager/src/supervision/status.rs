//! What is kept up for a sandbox, as it is shown.

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

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SupervisionStatus {
    /// Somebody keeps it up now. False when its supervisor was killed; the next command on the sandbox starts another.
    pub supervised: bool,
    /// The sandbox is paused because nobody used it.
    pub idle_paused: bool,
    /// When it ends.
    pub ttl: Option<TimeToLive>,
    /// How long that still is.
    pub ttl_left_ms: Option<u64>,
    /// What becomes of it when nobody uses it.
    pub idle: Option<IdleRule>,
    /// Its published ports.
    pub ports: Vec<PublishedPort>,
}

impl Sandbox {
    /// What is kept up for it; `None` when nothing is to be.
    ///
    /// # Errors
    /// When its files cannot be read.
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
            ports: supervision.ports.into_iter().map(|port| port.shown).collect(),
        }))
    }
}

/// True while the lock is held.
pub(crate) fn is_supervised(directory: &SandboxDirectory) -> Result<bool, DirectoryError> {
    is_held_exclusively(directory, LOCK)
}
