//! The sandboxes of this server: the only place that makes, pauses, resumes, copies and ends them.
//!
//! ```text
//! create ──> intent on disk ──> manager ──> record on disk ──> entry ──> client is answered      (create)
//! expiry ──> kill, or pause: snapshot, record on disk, VMM ended                                 (expiry, lifecycle)
//! restart ─> records read, each compared with what runs                                          (recovery)
//! request ─> gate, resume where it is paused and may be woken                                    (reach)
//! ```
//! The record on disk is authoritative: after a kill -9 at any point, the next start makes the sandboxes match the records.
//!
//! [`Registry`] itself is in `state`, with what keeps entries and records the same; each of the other modules adds the methods
//! of one concern to it. `templates`, `quotas` and `metering` are beside this room and know nothing of it.

pub(crate) mod builds;
mod create;
pub(crate) mod entry;
pub(crate) mod error;
mod expiry;
mod gate;
pub(crate) mod lifecycle;
pub(crate) mod network;
mod quotas;
mod reach;
pub(crate) mod record;
mod recovery;
mod sampling;
mod snapshots;
mod state;
mod volumes;

pub(crate) use create::NewSandbox;
pub(crate) use state::{OpenError, Registry};
