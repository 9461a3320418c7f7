//! Audit logs: an append-only log of JSON lines for each sandbox, which records each act on it and
//! the process that acted. Each line contains the hash of the line before, so that a changed,
//! removed or reordered line is noticed.
//!
//! A log is `audit/<id>.jsonl` in the home, and outlives its sandbox. [`line`] is what
//! every line has, [`event`] the events, [`chain`] the hashes and the check, [`log`] the file,
//! [`reading`] access to parts of it.
//! Every process that acts on a sandbox writes to its log, through [`Trail`]; `sandboxvm events`
//! and `sandboxvm audit` read it. A log may never contain the value of an environment variable.

pub(crate) mod chain;
pub(crate) mod event;
#[cfg(test)]
mod golden;
pub(crate) mod line;
pub(crate) mod log;
mod mask;
mod reading;
mod trails;

pub use chain::{Verified, Violation};
pub use event::{Event, FileAct, NetworkDecision, Origin};
pub use line::{Actor, Line};
pub use log::{AuditError, Trail};
