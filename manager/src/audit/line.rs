//! One line of an audit log: what every line has, whatever its event. docs/json.md lists the members.

use crate::{audit::event::Event, record::rfc3339};
use sandboxvm_protocol::ids::SandboxId;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// The process that acted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Its user ID on the host.
    pub uid: u32,
    /// Its PID on the host.
    pub pid: u32,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The number of the line, from 1 on.
    pub seq: u64,
    /// The time of the event.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The process that acted.
    pub by: Actor,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// The hash of the line before.
    pub prev: String,
}
