//! The services that a supervisor runs for its sandbox. Each maintains one thing while no command
//! runs.
//!
//! A service reads its configuration from the supervision record, and keeps in that record
//! everything that must survive a SIGKILL of the supervisor: the next supervisor starts the same
//! service from it. A service may not hold anything of a machine beyond one client's connection, so
//! a reset or restore needs no step for it. [`Service::stop`] returns once nothing of the service
//! is left outside the sandbox. To add a service, implement [`Service`] and add it to
//! `services::all`.

use super::{
    SuperviseError,
    file::Supervision,
    log::Log,
    talk::{Reply, Request},
};
use crate::{
    audit::Event,
    guest::{
        in_use::Unused,
        interruption::{self, Interruption},
        stop::{StopError, Stopped},
    },
    home::directory::SandboxDirectory,
    sandbox::Sandbox,
};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::time::Instant;

/// The state that services share.
pub(super) struct Context {
    pub(super) sandbox: Arc<Sandbox>,
    /// A separate descriptor for the supervisor: the one of the sandbox shows how long it is being
    /// created.
    pub(super) directory: SandboxDirectory,
    pub(super) record: Supervision,
    pub(super) log: Log,
    end_was_told: bool,
}

impl Context {
    pub(super) fn new(sandbox: Sandbox, directory: SandboxDirectory, record: Supervision, log: Log) -> Self {
        Self { sandbox: Arc::new(sandbox), directory, record, log, end_was_told: false }
    }

    /// Writes the record durably.
    pub(super) fn write_record(&self) -> Result<(), SuperviseError> {
        self.record.write(&self.directory)
    }

    /// Announces why the sandbox is about to be ended. The audit log has this only once, although
    /// ending it may take several attempts.
    pub(super) fn announce_end(&mut self, event: Event) {
        interruption::announce(&self.directory, Interruption::Expired);
        if !std::mem::replace(&mut self.end_was_told, true) {
            self.sandbox.trail().note(event);
        }
    }
}

/// The result of a deadline.
pub(super) enum Outcome {
    /// Nothing. The service reports its next deadline.
    Continue,
    /// The service stopped the sandbox, or tried to. If the sandbox still runs, the service's next
    /// deadline is the next attempt.
    Stopped {
        /// How the sandbox ended, or why it did not.
        stopped: Result<Stopped, StopError>,
        /// Whether to remove the sandbox too.
        remove: bool,
        /// Held until the sandbox has ended, so that no client starts to use it meanwhile.
        unused: Option<Unused>,
    },
}

/// The result of a request to the supervisor.
pub(super) type Answer = Result<Reply, SuperviseError>;

/// One service. All methods except [`Self::is_needed`] have a default, for services that do not
/// need them.
pub(super) trait Service: Send {
    /// Returns true while the record asks for this service.
    fn is_needed(&self, record: &Supervision) -> bool;

    /// Starts the service, before the supervisor reports that it is ready.
    fn start<'a>(&'a mut self, _context: &'a mut Context) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(async { Ok(()) })
    }

    /// Returns when [`Self::on_deadline`] is to be called, if at all.
    fn next_deadline(&self, _record: &Supervision) -> Option<Instant> {
        None
    }

    /// Does what is due.
    fn on_deadline<'a>(&'a mut self, _context: &'a mut Context) -> BoxFuture<'a, Outcome> {
        Box::pin(async { Outcome::Continue })
    }

    /// Answers a request that is for this service. Returns `None` for requests to others.
    fn on_request<'a>(&'a mut self, _context: &'a mut Context, _request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async { None })
    }

    /// Stops the service: nothing of it is left outside the sandbox's directory.
    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
