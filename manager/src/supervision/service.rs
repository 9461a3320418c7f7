//! What a supervisor runs for its sandbox: services, each of which maintains one thing while no command runs.
//!
//! A service reads what is wanted of it from the supervision record, and keeps in that record what must survive a SIGKILL
//! of the supervisor: the next supervisor starts the same service from it. It holds nothing of a machine beyond one
//! client's connection, so a reset or restore needs no step of its own. [`Service::stop`] returns once the outside world
//! has nothing of the service any more. To add one: implement [`Service`], and add it to `services::all`.

use super::{SuperviseError, file::Supervision, log::Log, publish::PublishedPort, talk::Request};
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

/// What services work with.
pub(super) struct Context {
    pub(super) sandbox: Arc<Sandbox>,
    /// Opened for the supervisor alone: the sandbox's own says for how long it is being made.
    pub(super) directory: SandboxDirectory,
    pub(super) record: Supervision,
    pub(super) log: Log,
    end_was_told: bool,
}

impl Context {
    pub(super) fn new(sandbox: Sandbox, directory: SandboxDirectory, record: Supervision, log: Log) -> Self {
        Self { sandbox: Arc::new(sandbox), directory, record, log, end_was_told: false }
    }

    /// Makes the record durable as it is.
    pub(super) fn write_record(&self) -> Result<(), SuperviseError> {
        self.record.write(&self.directory)
    }

    /// Says why the sandbox is about to be ended; in its audit log once, though ending it may take several attempts.
    pub(super) fn announce_end(&mut self, event: Event) {
        interruption::announce(&self.directory, Interruption::Expired);
        if !std::mem::replace(&mut self.end_was_told, true) {
            self.sandbox.trail().note(event);
        }
    }
}

/// What follows from a deadline.
pub(super) enum Outcome {
    /// Nothing; the service says when its next deadline is.
    Continue,
    /// The service stopped the sandbox, or tried to. If it still runs, the service's next deadline is the next attempt.
    Stopped {
        /// How.
        stopped: Result<Stopped, StopError>,
        /// Remove it too.
        remove: bool,
        /// Held until that is done, so that no client begins to use the sandbox meanwhile.
        unused: Option<Unused>,
    },
}

/// What a request to the supervisor brought about.
pub(super) type Answer = Result<Vec<PublishedPort>, SuperviseError>;

/// See the module. All methods but [`Self::is_needed`] have a default for services that lack what they are about.
pub(super) trait Service: Send {
    /// True while the record asks for this service.
    fn is_needed(&self, record: &Supervision) -> bool;

    /// Begins, before the supervisor reports that it is ready.
    fn start<'a>(&'a mut self, _context: &'a mut Context) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(async { Ok(()) })
    }

    /// When [`Self::on_deadline`] is to be called, if at all.
    fn next_deadline(&self, _record: &Supervision) -> Option<Instant> {
        None
    }

    /// Does what is due.
    fn on_deadline<'a>(&'a mut self, _context: &'a mut Context) -> BoxFuture<'a, Outcome> {
        Box::pin(async { Outcome::Continue })
    }

    /// Answers a request that is this service's; `None` leaves it to others.
    fn on_request<'a>(&'a mut self, _context: &'a mut Context, _request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async { None })
    }

    /// Ends: nothing of it is left outside the sandbox's directory.
    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
