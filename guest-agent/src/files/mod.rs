//! Operations on files for the host: one request, one connection, one process.
//!
//! ```text
//! worker    the fork, what the new process gives up, and its end
//! channel   frames on the connection: data in, data and replies out
//! operation selects the function of a request
//! inspect   stat, list                      failure   errors as the wire has them
//! describer describes one file
//! details   targets of links, metadata      watch     inotify
//! change    mkdir, move, remove, chmod, chown
//! content   content of files, in and out    archive   trees, in and out
//! mounting  volumes, file systems in memory, workspaces, live shares
//! disk_changes  what the disk has and the image lacks, or a workspace and its slots, as a layer
//! ```
//! The agent itself never waits for a disk or for a host that reads slowly. It forks (it has one
//! thread, so the copy is complete) and forgets the connection. The process changes to the
//! requested user, keeps no descriptor of the agent but the connection (for `disk_changes` also the
//! upper directory of the overlay), and blocks. The credit of vsock limits its speed, its end is the
//! end of the request, and a kill cancels the request. It notices the end of the connection with the
//! next byte in either direction, or immediately if it waits for nothing else. PID 1 executes
//! nothing of this.

mod archive;
mod change;
mod channel;
mod content;
mod describer;
mod details;
mod disk_changes;
mod failure;
mod inspect;
mod mounting;
mod operation;
mod watch;
mod worker;

pub(crate) use worker::{Handover, start};
