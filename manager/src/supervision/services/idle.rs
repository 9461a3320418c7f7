//! Pauses, stops or removes a sandbox that no client has used for as long as its idle rule says.

use super::ttl::{GRACE, LONGEST_WAIT, RETRY_AFTER};
use crate::{
    audit::Event,
    clock,
    guest::in_use::Unused,
    limits::lifetime::{IdleRule, WhenIdle},
    supervision::{
        file::Supervision,
        service::{Context, Outcome, Service},
    },
    vmm::state::State,
};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;

/// Shortest and longest time between two checks of a sandbox that is in use or paused.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// The service of the idle rule.
pub(super) struct Idle {
    look_at: Instant,
    /// When a client was last seen using the sandbox, as time since the host's boot.
    last_seen: Duration,
}

impl Idle {
    pub(super) fn new() -> Self {
        Self { look_at: Instant::now(), last_seen: Duration::ZERO }
    }

    async fn look(&mut self, context: &mut Context, rule: IdleRule) -> Outcome {
        let (shortest, longest) = LOOKS;
        let soon = (rule.after / 4).clamp(shortest, longest);
        self.look_at = Instant::now() + soon.min(LONGEST_WAIT);
        if !matches!(context.sandbox.state(), Ok(State::Running)) {
            // A user who paused it wants it to stay paused, and decides when to resume it.
            return Outcome::Continue;
        }
        let unused = match Unused::try_begin(&context.directory) {
            Ok(Some(unused)) => unused,
            Ok(None) => {
                self.last_seen = clock::since_boot();
                return Outcome::Continue;
            }
            Err(error) => {
                context.log.note(format_args!("cannot look for users: {error}"));
                self.look_at = Instant::now() + RETRY_AFTER;
                return Outcome::Continue;
            }
        };
        let idle_at = self.last_seen.max(unused.last_use()).saturating_add(rule.after);
        let left = idle_at.saturating_sub(clock::since_boot());
        if !left.is_zero() {
            self.look_at = Instant::now() + left.min(LONGEST_WAIT);
            return Outcome::Continue;
        }
        match rule.then {
            WhenIdle::Pause => {
                match unused.pause(&context.directory).await {
                    Ok(()) => context.sandbox.trail().note(Event::IdlePaused),
                    Err(error) => {
                        context.log.note(format_args!("cannot pause the idle sandbox: {error}"));
                        self.look_at = Instant::now() + RETRY_AFTER;
                    }
                }
                Outcome::Continue
            }
            WhenIdle::Stop | WhenIdle::Remove => {
                context.log.note(format_args!("the idle time was reached: {}", rule.then));
                context.announce_end(Event::IdleEnded { then: rule.then });
                // A client that tries to use the sandbox meanwhile waits, and receives the reason
                // of its end.
                let stopped = context.sandbox.stop_unused(GRACE).await;
                self.look_at = Instant::now() + RETRY_AFTER;
                Outcome::Stopped { stopped, remove: rule.then == WhenIdle::Remove, unused: Some(unused) }
            }
        }
    }
}

impl Service for Idle {
    fn is_needed(&self, record: &Supervision) -> bool {
        record.idle.is_some()
    }

    fn next_deadline(&self, record: &Supervision) -> Option<Instant> {
        record.idle.map(|_| self.look_at)
    }

    fn on_deadline<'a>(&'a mut self, context: &'a mut Context) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            match context.record.idle {
                Some(rule) => self.look(context, rule).await,
                None => Outcome::Continue,
            }
        })
    }
}
