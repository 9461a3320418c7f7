//! The process that holds the home: it creates, changes and ends sandboxes, and alone has keys, tokens and records. It never
//! parses what comes from the network: the front does, and asks over a [`channel`](crate::channel).
//!
//! ```text
//! serve ── one channel to one front ──> operations ── what a key asks for ──────────> registry
//!                                  └──> doors ─────── what a token or signature opens ──> registry, guest
//! ```
//! The front may have been taken over. So nothing that it sends is believed: the key of each operation, the token of each
//! sandbox, the bounds of each value are checked here, and what one front holds at the same time is bounded.

mod builds;
mod doors;
#[cfg(test)]
mod drill_tests;
mod logs;
mod operations;
mod paging;
pub(crate) mod serve;
mod snapshots;
mod views;
mod volumes;

use crate::{
    access::{Credentials, rate::RateLimits},
    channel::request::Figures,
    concurrency::{ConcurrencyLimit, Places as ContentPlaces},
    config::Config,
    metering::ends::Ended,
    registry::Registry,
};
use rustix::process::{Resource, getrlimit};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Operations at the same time, until their answers have been sent; more where the front may have more requests.
const OPERATIONS: usize = 2048;
/// Operations with long answers.
const LONG_OPERATIONS: usize = 12;
/// Calls about guests; fewer where this process may have fewer descriptors, since each has up to two until it is answered.
const CALLS: usize = 8192;

/// Processes at the same time that serve requests about files of volumes.
const CONTENT: ContentPlaces = ContentPlaces { all: 64, of_one_key: 16, of_one_sandbox: 16 };

/// Returns the places of processes that serve requests about files of volumes.
pub(crate) fn content_places() -> ConcurrencyLimit {
    ConcurrencyLimit::of(CONTENT)
}

/// What may be under way at the same time, whichever front asked for it: what one has begun may outlive it.
#[derive(Debug)]
pub(crate) struct Places {
    operations: Arc<Semaphore>,
    long_operations: Arc<Semaphore>,
    calls: Arc<Semaphore>,
}

impl Places {
    pub(crate) fn of(config: &Config) -> Self {
        let operations = OPERATIONS.max(config.concurrent_requests).min(Semaphore::MAX_PERMITS);
        let calls = (descriptors() / 8).clamp(1, CALLS);
        let [operations, long_operations, calls] =
            [operations, LONG_OPERATIONS, calls].map(|count| Arc::new(Semaphore::new(count)));
        Self { operations, long_operations, calls }
    }
}

/// Shared by all channels.
#[derive(Debug)]
pub(crate) struct Launcher {
    pub(crate) config: Config,
    pub(crate) credentials: Credentials,
    pub(crate) registry: Registry,
    /// Certificate chain and key, PEM.
    pub(crate) tls: Option<(String, String)>,
    pub(crate) places: Places,
    /// Processes that serve requests about files of volumes.
    pub(crate) content_places: ConcurrencyLimit,
    /// How often clients ask about files of volumes: each request starts a process.
    pub(crate) content_pace: RateLimits,
}

pub(crate) type SharedLauncher = Arc<Launcher>;

impl Launcher {
    fn figures(&self) -> Figures {
        let entries = self.registry.entries();
        let paused = entries.iter().filter(|entry| entry.record().is_paused()).count();
        let templates = || self.registry.templates.iter();
        Figures {
            running: entries.len() - paused,
            paused,
            armed: templates().map(|(name, template)| (name.clone(), template.armed())).collect(),
            pools_are_warm: templates().all(|(_, template)| template.config.pool == 0 || template.armed() > 0),
            ends: Ended::counts(&self.registry.ends),
            traffic: self.registry.traffic.sum(),
        }
    }
}

/// The number of descriptors that this process may have. An open sandbox holds two: a front must leave enough for the work of
/// the launcher.
fn descriptors() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}
