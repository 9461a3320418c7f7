//! How to take part in a process that already runs, or has ended and is remembered.

use sandboxvm_protocol::agent::{
    TerminalSize,
    process::{AttachRequest, View},
};

/// A process to attach to, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachSpec {
    /// Its PID in the guest.
    pub pid: u32,
    /// What to receive of its output.
    pub view: View,
    /// Feed its standard input, in place of the connection that fed it before.
    pub stdin: bool,
    /// Resize its terminal.
    pub terminal: Option<TerminalSize>,
}

impl AttachSpec {
    /// Receives this much of a process, without feeding or resizing it.
    #[must_use]
    pub fn new(pid: u32, view: View) -> Self {
        Self { pid, view, stdin: false, terminal: None }
    }
}

impl From<AttachSpec> for AttachRequest {
    fn from(AttachSpec { pid, view, stdin, terminal }: AttachSpec) -> Self {
        Self { pid, view, stdin, terminal }
    }
}
