//! What is kept up for a sandbox while no command of ours runs: its time to live, its idle rule, its published ports.
//!
//! ```text
//! supervision.json  what is wanted and what is in force; written by the supervisor, and before there is one
//! supervisor.lock   flock held by the supervisor for its life      supervisor.sock  where it is asked for ports
//! supervisor.log    what it had to say, bounded
//!
//! create, port, fork ── write supervision.json ──> start ── SupervisorProgram ──> keeper (holds supervisor.lock)
//! any other command ── finds the lock free ──────────┘                              │ listeners: ports
//!                                                                                   │ rules: stop, remove, pause
//!                                              sandbox's agent and VMM <────────────┘ watches: VMM's end
//! ```
//! One small process for each sandbox that has any of these, and none for others. It ends by itself when the sandbox does.
//! Killing it changes nothing but that nobody keeps the rules until the next command on the sandbox starts another: all
//! that counts is in the files. It belongs to one sandbox: forks, snapshots and what is made of them have none of it.

mod file;
pub mod keeper;
mod listeners;
pub(crate) mod publish;
pub(crate) mod rules;
mod start;
pub(crate) mod status;
mod talk;

pub(crate) use listeners::forget;

use crate::{directory::DirectoryError, manager::FindError};
use publish::{HostEnd, MAX_PORTS, Publish};
use rules::{IdleRule, TimeToLive};
use sandboxvm_protocol::agent::port::PortNumber;
use std::{ffi::OsString, io, path::PathBuf};

pub(crate) const FILE: &str = "supervision.json";
pub(crate) const LOCK: &str = "supervisor.lock";
pub(crate) const SOCKET: &str = "supervisor.sock";
pub(crate) const LOG: &str = "supervisor.log";

/// What is to be kept up for a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SupervisionSpec {
    /// When it ends.
    pub ttl: Option<TimeToLive>,
    /// What becomes of it when nobody uses it.
    pub idle: Option<IdleRule>,
    /// Ports to publish.
    pub ports: Vec<Publish>,
}

impl SupervisionSpec {
    /// True when there is nothing to keep up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a supervisor is started: a program that calls [`keeper::keep`] for the home and the ID that follow `arguments`,
/// writes `ready` to its stdout when told to and closes it, or writes there why it cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisorProgram {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<OsString>,
}

/// Why something is not kept up.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The supervisor did not start.
    #[error("cannot run the supervisor {}: {source}", .program.display())]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It started and refused.
    #[error("{0}")]
    Refused(String),
    /// It started and ended, or does not answer.
    #[error("the supervisor of the sandbox {what}; its log is {}", .log.display())]
    Lost {
        /// What it does.
        what: String,
        /// Its log.
        log: PathBuf,
    },
    /// The sandbox does not run.
    #[error("cannot publish ports of sandbox {sandbox}: it is {state}")]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: crate::state::State,
    },
    /// Nothing could listen there.
    #[error("cannot publish port {port} on {end}: {source}")]
    Listen {
        /// Of the guest.
        port: PortNumber,
        /// Where.
        end: HostEnd,
        /// Why.
        source: io::Error,
    },
    /// It is there already.
    #[error("{0} is already published")]
    Taken(HostEnd),
    /// It is not there.
    #[error("port {0} of the sandbox is not published")]
    Unknown(PortNumber),
    /// Too many.
    #[error("cannot publish the port: the sandbox already has {MAX_PORTS} published ports, which is the maximum")]
    TooMany,
    /// The record cannot be read.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The system does not tell the time.
    #[error("cannot tell this boot of the host from others: {0}")]
    Clock(io::Error),
    /// There is no such sandbox.
    #[error("{0}")]
    Find(#[from] FindError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}
