//! Ends a sandbox when its time to live is over.

use crate::{
    audit::Event,
    limits::lifetime::AtEnd,
    supervision::{
        file::Supervision,
        service::{Context, Outcome, Service},
    },
};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;

/// Time between SIGTERM and SIGKILL for processes, as with `stop`.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Longest wait with a clock that stops while the host sleeps.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Delay before an action that failed is tried again.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The service of the time to live.
pub(super) struct TimeToLive {
    retry_at: Instant,
}

impl TimeToLive {
    pub(super) fn new() -> Self {
        Self { retry_at: Instant::now() }
    }
}

impl Service for TimeToLive {
    fn is_needed(&self, record: &Supervision) -> bool {
        record.ttl.is_some()
    }

    fn next_deadline(&self, record: &Supervision) -> Option<Instant> {
        // Checked again after a while, since the host may have slept.
        let left = record.ttl.as_ref()?.deadline.left().min(LONGEST_WAIT);
        Some(self.retry_at.max(Instant::now() + left))
    }

    fn on_deadline<'a>(&'a mut self, context: &'a mut Context) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let expired = context.record.ttl.as_ref().filter(|ttl| ttl.deadline.left().is_zero());
            let Some(then) = expired.map(|ttl| ttl.rule.then) else { return Outcome::Continue };
            self.retry_at = Instant::now() + RETRY_AFTER;
            context.log.note(format_args!("the time to live was reached: {then}"));
            context.announce_end(Event::TimeUp { then });
            let stopped = context.sandbox.stop(GRACE).await;
            Outcome::Stopped { stopped, remove: then == AtEnd::Remove, unused: None }
        })
    }
}
