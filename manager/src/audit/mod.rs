//! What was done with each sandbox, and by whom: an append-only log of JSON lines per sandbox, each bound to the one
//! before by its hash, so that a changed, removed or reordered line is found.
//!
//! A log is `audit/<id>.jsonl` in the home. It outlives its sandbox. [`chain`] owns the format of a line and the check,
//! [`log`] the file, [`reading`] looking at parts of it, [`event`] what can be said. Written by whoever acts on a sandbox, through [`Trail`]; read by
//! `sandboxvm events` and `sandboxvm audit`. It never holds the value of an environment variable.

pub(crate) mod chain;
pub(crate) mod event;
#[cfg(test)]
mod golden;
pub(crate) mod log;
mod mask;
mod reading;
mod trails;

pub use chain::{Actor, Line, Verified, Violation};
pub use event::{Event, FileAct, Origin};
pub use log::{AuditError, Trail};
