//! The server as data: what the event loop and the requests work on.

use super::connection::Connection;
use super::listener::Listener;
use super::relay::Relay;
use crate::identity::IdentityFiles;
use crate::process::Process;
use crate::process::limit_counts::LimitCounts;
use crate::process::spawn::Spawner;
use crate::slab::{Key, Slab};
use rustix::process::Pid;
use sandboxvm_protocol::agent::files::FileRequest;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Most processes at a time that a host has started and that have not ended.
pub(super) const MAX_PROCESSES: usize = 1024;

/// What the agent is to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// PID 1: owns every process there is.
    Init,
    /// An ordinary process: owns those it started.
    Service,
}

/// How far a shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// None was asked for.
    No,
    /// SIGTERM was sent; SIGKILL follows at this time.
    Terminating(u64),
    /// SIGKILL was sent; given up at this time.
    Killing(u64),
    /// No process is left; what they said last has until this time to be sent.
    Parting(u64),
}

impl Ending {
    /// When it next needs attention.
    pub(super) fn deadline(self) -> Option<u64> {
        match self {
            Self::No => None,
            Self::Terminating(at) | Self::Killing(at) | Self::Parting(at) => Some(at),
        }
    }
}

/// The agent's server. Its methods are where its work is: see [`super`].
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) role: Role,
    pub(super) identity: IdentityFiles,
    pub(super) epoll: OwnedFd,
    pub(super) signals: OwnedFd,
    pub(super) listener: Listener,
    /// When accepting resumes after a pause.
    pub(super) accept_again: Option<u64>,
    pub(super) connections: Slab<Connection>,
    /// Those that run, and those that ended and are remembered.
    pub(super) processes: Slab<Process>,
    /// The latter, in the order they ended.
    pub(super) remembered: VecDeque<Key>,
    pub(super) relays: Slab<Relay>,
    pub(super) spawner: Spawner,
    /// Of the machine; nothing for an agent that does not own it.
    pub(super) limit_counts: Option<LimitCounts>,
    /// One read from a socket, or all frames of one turn of a process.
    pub(super) scratch: Box<[u8]>,
    /// Processes that work on files.
    pub(super) file_workers: Vec<Pid>,
    /// Asked for on the connection whose frames are being handled.
    pub(super) file_request: Option<Box<FileRequest>>,
    /// Connections to receive from in this turn.
    pub(super) receiving: Vec<Key>,
    /// Processes to look at in this turn.
    pub(super) due: Vec<Key>,
    /// Relays to look at in this turn.
    pub(super) relays_due: Vec<Key>,
    /// A child has ended.
    pub(super) reap_due: bool,
    /// At the last reaping no child was left at all.
    pub(super) is_childless: bool,
    pub(super) ending: Ending,
}
