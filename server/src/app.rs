//! The state that all request handlers share.

use crate::{
    access::Pace,
    channel::client::Launcher,
    concurrency::{ConcurrencyLimit, Places},
    config::Config,
};
use std::sync::Arc;

/// Shared by all requests.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) pace: Pace,
    pub(crate) launcher: Launcher,
    pub(crate) limits: ConcurrencyLimits,
}

/// Where requests take their places.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimits {
    /// Requests of the control plane whose bodies are being read: a client that sends slowly takes no place from others.
    pub(crate) reading: ConcurrencyLimit,
    /// Requests of the control plane that are worked on.
    pub(crate) control: ConcurrencyLimit,
    /// Logs that are read: each may be long, and is read to its end or until its client goes away.
    pub(crate) logs: ConcurrencyLimit,
    /// Requests to sandboxes until their answers begin.
    pub(crate) sandbox: ConcurrencyLimit,
    /// Answers of sandboxes that are being sent, and upgraded connections.
    pub(crate) streams: ConcurrencyLimit,
}

/// Logs of sandboxes that are read at a time: each takes a processor, a thread and some 32 MiB.
const LOGS: Places = Places { all: 8, of_one_key: 4, of_one_sandbox: 2 };

impl ConcurrencyLimits {
    pub(crate) fn of(config: &Config) -> Self {
        let requests = Places {
            all: config.concurrent_requests,
            of_one_key: config.concurrent_requests_per_key,
            of_one_sandbox: config.concurrent_requests_per_sandbox,
        };
        let streams = Places {
            all: config.streams,
            of_one_key: config.streams_per_key,
            of_one_sandbox: config.streams_per_sandbox,
        };
        Self {
            reading: ConcurrencyLimit::of(requests),
            control: ConcurrencyLimit::of(requests),
            logs: ConcurrencyLimit::of(LOGS),
            sandbox: ConcurrencyLimit::of(requests),
            streams: ConcurrencyLimit::of(streams),
        }
    }
}

/// The [`App`] as handlers receive it.
pub(crate) type SharedApp = Arc<App>;

/// The envd version that clients receive. It switches their features on, so it is the version of the API served here.
pub(crate) const ENVD_VERSION: &str = "0.6.4";
