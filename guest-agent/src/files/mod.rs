//! Work on files for the host: one request, one connection, one process.
//!
//! ```text
//! worker    the fork, what the new process gives up, and its end
//! channel   frames on the connection: data in, data and replies out
//! operation which part does what
//! inspect   stat, list                      failure   errors as the wire has them
//! describer what one file is
//! details   where links lead, metadata      mounts    file systems that are not the guest's own
//! change    mkdir, move, remove, chmod, chown
//! content   a file's bytes, in and out      archive   trees, in and out
//! watch     inotify
//! ```
//! The agent itself never waits for a disk or for a host that reads slowly: it forks (it is a single thread, so that the
//! copy is whole) and forgets the connection. The process takes on the user it was asked to be, keeps no descriptor of
//! the agent's but the connection, and blocks: vsock's credit holds it back, its end is the end of the request, and
//! killing it is how a request is given up. The process notices the connection's end with the next byte either way, or
//! immediately where it waits for nothing else. PID 1 executes nothing here.

mod archive;
mod change;
mod channel;
mod content;
mod describer;
mod details;
mod failure;
mod inspect;
mod mounts;
mod operation;
mod watch;
mod worker;

pub(crate) use worker::{Handover, start};
