//! What a process that may not open a sandbox's directory sends to the one that may: see `remote`.

use crate::guest::{
    in_use::InUse,
    silence::{Silence, Step},
};
use sandboxvm_protocol::agent::{ExitStatus, HostMessage, SignalNumber, limits::LimitsHit};
use serde::{Deserialize, Serialize};
use std::{fmt, future::Future, os::fd::OwnedFd, pin::Pin, sync::Arc};

pub(crate) type Reaching<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Carries calls to the process that has the sandbox. While it lives, that process keeps the
/// sandbox in use.
pub trait Courier: fmt::Debug + Send + Sync {
    /// Sends a call and returns the answer to it.
    fn carry(&self, call: Vec<u8>) -> Reaching<'_, Result<Carried, String>>;

    /// Sends a call that has no answer.
    fn tell(&self, call: Vec<u8>);
}

/// An answer that a [`Courier`] brings.
#[derive(Debug)]
pub struct Carried {
    /// What [`crate::Answered::answer`] was.
    pub answer: Vec<u8>,
    /// What [`crate::Answered::stream`] was.
    pub stream: Option<OwnedFd>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Request(HostMessage),
    Processes,
    /// Without a connection for the caller, which would take further requests.
    Signal {
        pid: u32,
        signal: SignalNumber,
    },
    /// What happened to the sandbox, whose connection ended or which did not answer?
    Explain(Option<Silence>),
    /// Answered once a part of the sandbox has not answered for too long.
    Silence(Step),
    Ended {
        pid: u32,
        status: ExitStatus,
    },
    LimitsHit(LimitsHit),
}

impl Call {
    /// Sends it where no answer is expected. A failure costs a line of the audit log.
    pub(crate) fn tell(&self, courier: &dyn Courier) {
        if let Ok(call) = postcard::to_stdvec(self) {
            courier.tell(call);
        }
    }
}

/// Keeps the idle rule from pausing a sandbox while a connection is open.
#[derive(Debug)]
#[expect(dead_code, reason = "it matters when they are dropped")]
pub(crate) enum Use {
    Lock(InUse),
    /// The process at the other end keeps the sandbox in use as long as this lives.
    Lease(Arc<dyn Courier>),
}
