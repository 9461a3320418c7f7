//! The main process of a sandbox: what its image or its user starts in it, and how a shutdown asks it to
//! end. There is at most one at a time.

use super::exec::{ExecRequest, SignalNumber};
use serde::{Deserialize, Serialize};

/// How to run the main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainRequest {
    /// The process.
    pub process: ExecRequest,
    /// What makes it the main process.
    pub main: MainProcess,
}

/// What distinguishes the main process from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainProcess {
    /// The signal that it gets at a shutdown, before any other process gets SIGTERM.
    pub stop_signal: SignalNumber,
    /// Whether it is an init system. Then it is PID 1 of its own PID, mount and control group namespaces,
    /// which processes that are started later enter.
    pub is_init: bool,
}
