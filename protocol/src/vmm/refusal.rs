//! Why a VMM did not do what it was asked: a kind for programs, and a text for people.

use super::status::MAX_TEXT;
use crate::capped;
use serde::{Deserialize, Serialize};

/// A request that was not carried out. The machine is as it was, unless an event says that it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// What was tried and why it failed. Cut to [`MAX_TEXT`] bytes when it is sent.
    #[serde(with = "capped::Text::<MAX_TEXT>")]
    pub message: String,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The request makes no sense for this machine: a file is missing, or there are too many.
    BadRequest,
    /// The machine is in a phase, or has a beginning, that does not allow the request.
    WrongPhase,
    /// Another request that takes long is not finished. The same request may succeed later.
    Busy,
    /// What was prepared is out of date, because another request came in between.
    Superseded,
    /// The snapshot is damaged, of another format, or of another machine.
    BadSnapshot,
    /// A disk of the host is full.
    NoSpace,
    /// The host has no process, descriptor or memory left.
    Resources,
    /// KVM or the host failed in another way; the message says how.
    Host,
}
