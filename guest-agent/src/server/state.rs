//! The data of the server, on which the event loop and the requests work.

use super::connection::Connection;
use super::listener::Listener;
use super::relays::Relay;
use crate::identity::IdentityFiles;
use crate::process::Process;
use crate::process::limit_counts::LimitCounts;
use crate::process::start::Spawner;
use crate::slab::{Key, Slab};
use rustix::process::Pid;
use sandboxvm_protocol::agent::SignalNumber;
use sandboxvm_protocol::agent::files::FileRequest;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Maximum number of running processes that hosts have started.
pub(super) const MAX_PROCESSES: usize = 1024;

/// The role of the agent in its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// PID 1, to which all processes belong.
    Init,
    /// An ordinary process, to which only the processes belong that it started.
    Service,
}

/// The state of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// No shutdown was requested.
    No,
    /// SIGTERM was sent. SIGKILL follows at this time.
    Terminating(u64),
    /// SIGKILL was sent. The agent stops waiting at this time.
    Killing(u64),
    /// No process is left. Their last output may be sent until this time.
    Parting(u64),
}

impl Ending {
    /// Returns when the next step is due.
    pub(super) fn deadline(self) -> Option<u64> {
        match self {
            Self::No => None,
            Self::Terminating(at) | Self::Killing(at) | Self::Parting(at) => Some(at),
        }
    }
}

/// The running main process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Main {
    pub(super) key: Key,
    /// The signal that it gets at a shutdown, before the others.
    pub(super) stop_signal: SignalNumber,
}

/// The agent's server. Its methods are in the modules that use them: see [`super`].
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
    /// Running processes, and ended ones that are remembered.
    pub(super) processes: Slab<Process>,
    /// The main process, while it runs.
    pub(super) main: Option<Main>,
    /// The remembered ones, in the order in which they ended.
    pub(super) remembered: VecDeque<Key>,
    pub(super) relays: Slab<Relay>,
    pub(super) spawner: Spawner,
    /// The limits that programs reached, or none if the agent is not PID 1.
    pub(super) limit_counts: Option<LimitCounts>,
    /// Buffer for one read from a socket, or for all frames of one turn of a process.
    pub(super) scratch: Box<[u8]>,
    /// Processes for files.
    pub(super) file_workers: Vec<Pid>,
    /// The request for files on the connection whose frames are being handled.
    pub(super) file_request: Option<Box<FileRequest>>,
    /// The upper directory of the overlay that is the root, for requests about the changes of the disk.
    pub(super) upper: Option<OwnedFd>,
    /// Connections to receive from in this turn.
    pub(super) receiving: Vec<Key>,
    /// Processes to look at in this turn.
    pub(super) due: Vec<Key>,
    /// Relays to look at in this turn.
    pub(super) relays_due: Vec<Key>,
    /// Whether a child has ended.
    pub(super) reap_due: bool,
    /// Whether there was no child at the last reaping.
    pub(super) is_childless: bool,
    pub(super) ending: Ending,
}
