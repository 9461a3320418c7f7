//! How requests reach the agent of a sandbox: through its directory (`direct`), or through another
//! process that may open it (`remote`).
//!
//! Everything else in `guest` is written against [`Route`], so that both ways have the same
//! requests, limits and errors.

use crate::{
    audit::{Event, Trail},
    guest::{
        connection::{
            agent::{AgentConnection, AgentError},
            courier::{Call, Courier, Reaching},
        },
        error::ExecError,
        silence::{Silence, Step},
    },
};
use sandboxvm_protocol::agent::{
    AgentMessage, ExitStatus, HostMessage, SignalNumber, limits::LimitsHit, process::ProcessInfo,
};
use std::{fmt, sync::Arc};

pub(crate) trait Route: fmt::Debug + Send + Sync {
    /// Connects, sends a request, and returns the first answer. The request is in the audit log
    /// before the guest receives it.
    fn request(&self, request: HostMessage) -> Reaching<'_, Result<(AgentConnection, AgentMessage), ExecError>>;

    fn processes(&self) -> Reaching<'_, Result<Vec<ProcessInfo>, ExecError>>;

    /// Signals the process group of a process.
    fn signal(&self, pid: u32, signal: SignalNumber) -> Reaching<'_, Result<(), ExecError>>;

    /// Turns the failure of a connection into what happened to the sandbox, if something did.
    fn explained(&self, error: AgentError) -> Reaching<'_, ExecError>;

    /// Returns once a part of the sandbox has not answered for too long.
    fn silence(&self, step: Step) -> Reaching<'_, Silence>;

    /// Returns where to log the end of a process that was started.
    fn end_log(&self, pid: u32) -> EndLog;
}

/// Where the end of a process is logged.
#[derive(Debug)]
pub(crate) enum EndLog {
    Trail(Trail, u32),
    Remote(Arc<dyn Courier>, u32),
}

impl EndLog {
    pub(crate) fn ended(&self, status: ExitStatus) {
        match self {
            Self::Trail(trail, pid) => trail.note(Event::ended(*pid, status)),
            Self::Remote(courier, pid) => Call::Ended { pid: *pid, status }.tell(&**courier),
        }
    }

    pub(crate) fn limits_hit(&self, hit: LimitsHit) {
        match self {
            Self::Trail(trail, _) => trail.note(Event::limits_hit(hit)),
            Self::Remote(courier, _) => Call::LimitsHit(hit).tell(&**courier),
        }
    }
}
