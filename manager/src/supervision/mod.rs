//! The services of a sandbox that continue while no command runs: its time to live, its idle rule,
//! its published ports, its network and its live shares.
//!
//! ```text
//! supervision.json  what is wanted and what is in force; written by the supervisor, and before
//!                   there is one
//! supervisor.lock   flock held by the supervisor for its life
//! supervisor.sock   where it is asked for ports
//! supervisor.log    its messages, bounded
//!
//! create, port, fork ── write supervision.json ──> start ── SupervisorProgram ──> keeper
//! any other command ── finds the lock free ──────────┘       holds supervisor.lock  │
//!                                                      services: ports, ttl, idle, network, shares
//!                        sandbox's agent and VMM <── stop, remove, pause, watch ────┘
//! ```
//! There is one small process for each sandbox that has such a service, and none for others. It
//! ends when the sandbox does. If it is killed, the services stop, and nothing passes the network, until the next command on the
//! sandbox starts another supervisor, and nothing else changes: the whole state is in the files. A
//! supervisor may not act on another sandbox, and forks and snapshots of its sandbox do not inherit
//! its services.

mod file;
pub mod keeper;
mod log;
pub(crate) mod publish;
mod service;
mod services;
mod settings;
mod start;
pub(crate) mod status;
mod talk;

pub(crate) use services::child::Child;
pub(crate) use services::listeners::forget;
pub(crate) use start::plan;
pub use talk::NetworkReport;

use crate::{
    audit::AuditError,
    home::directory::DirectoryError,
    limits::lifetime::{IdleRule, TimeToLive},
    manager::FindError,
    network::{secrets::SecretsError, spec::NetworkSpecError},
    record::RecordError,
};
use publish::{HostEnd, MAX_PORTS, Publish};
use sandboxvm_protocol::agent::port::PortNumber;
pub use services::network::NetworkFailure;
pub use services::shares::ShareFailure;
use std::{ffi::OsString, io, path::PathBuf};

pub(crate) const FILE: &str = "supervision.json";
pub(crate) const LOCK: &str = "supervisor.lock";
pub(crate) const SOCKET: &str = "supervisor.sock";
pub(crate) const LOG: &str = "supervisor.log";

/// The services that a sandbox is to have, besides its network and its shares, which it has if it was
/// created with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SupervisionSpec {
    /// Ends the sandbox after a time.
    pub ttl: Option<TimeToLive>,
    /// Pauses, stops or removes the sandbox when it is not used.
    pub idle: Option<IdleRule>,
    /// Ports to publish.
    pub ports: Vec<Publish>,
}

impl SupervisionSpec {
    /// Returns true if there is nothing to maintain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a supervisor is started: a program that calls [`keeper::keep`] for the home and the ID that
/// follow `arguments`. When `keep` reports that it is ready, the program writes `ready` to its
/// stdout and closes it; otherwise it writes there why it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisorProgram {
    /// Path of the program.
    pub program: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<OsString>,
}

/// Why a service is not maintained.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The supervisor cannot be started.
    #[error("cannot run the supervisor {}: {source}", .program.display())]
    Spawn {
        /// Path of the program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The supervisor started and rejected the request.
    #[error("{0}")]
    Refused(String),
    /// The supervisor ended or does not answer.
    #[error("the supervisor of the sandbox {what}; its log is {}", .log.display())]
    Lost {
        /// What it does instead.
        what: String,
        /// Path of its log.
        log: PathBuf,
    },
    /// Only a running sandbox can publish ports.
    #[error("cannot publish ports of sandbox {sandbox}: it is {state}")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: crate::vmm::state::State,
    },
    /// Listening on the end on the host failed.
    #[error("cannot publish port {port} on {end}: {source}")]
    Listen {
        /// Port of the guest.
        port: PortNumber,
        /// The end on the host.
        end: HostEnd,
        /// The system's error.
        source: io::Error,
    },
    /// The end on the host is already published.
    #[error("{0} is already published")]
    Taken(HostEnd),
    /// The port is not published.
    #[error("port {0} of the sandbox is not published")]
    Unknown(PortNumber),
    /// The sandbox has too many ports.
    #[error("cannot publish the port: the sandbox already has {MAX_PORTS} published ports, which is the maximum")]
    TooMany,
    /// The network cannot be started.
    #[error("cannot start the network of the sandbox: {0}")]
    Network(#[from] NetworkFailure),
    /// The shares cannot be served.
    #[error("cannot serve the shares of the sandbox: {0}")]
    Shares(#[from] ShareFailure),
    /// The settings of the network were recorded, and are not in force.
    #[error("the network of the sandbox is down: {0}")]
    NetworkDown(String),
    /// The machine has no network card.
    #[error("sandbox {0} has no network card: its network was decided when it was created")]
    NoCard(String),
    /// The sandbox cannot have the network that was asked for.
    #[error("{0}")]
    NetworkSpec(#[from] NetworkSpecError),
    /// The values of secrets cannot be kept.
    #[error("cannot keep the secrets of the sandbox: {0}")]
    Secrets(#[from] SecretsError),
    /// The settings of the network cannot be read.
    #[error("{0}")]
    NetworkRecord(#[from] RecordError),
    /// The audit log cannot be written, so the network was not changed: it would allow more than
    /// before.
    #[error("{0}")]
    Audit(#[from] AuditError),
    /// The record is not valid.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// Path of the record.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// The boot ID of the host cannot be read.
    #[error("cannot tell this boot of the host from others: {0}")]
    Clock(io::Error),
    /// The sandbox does not exist.
    #[error("{0}")]
    Find(#[from] FindError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}
