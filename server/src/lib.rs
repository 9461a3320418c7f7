//! A server for E2B's own clients, on one machine and without other services, in two processes.
//!
//! ```text
//! front: no privileges                         │ launcher: root, or the owner of the home
//! control plane (api listener)      ─┐         │
//! sandbox plane (sandboxes listener)─┴> channel ─┬─> operations ──> registry ──> manager (library) ──> microVMs
//!   envd, traffic <── connections to guests ──┘│ └─> doors           │
//!                                              │ access: keys, tokens└─ what is known of each sandbox, on disk
//! ```
//! `front` reads requests, `launcher` decides. `registry` alone decides over the life of a sandbox; below it, `templates` says
//! what sandboxes are made from, `quotas` what a key may have, and `metering` what sandboxes took. `access` alone knows keys and
//! tokens. `control_plane` and `sandbox_plane` translate requests; the only state they have is what envd remembers of a
//! sandbox until the front ends. The guest is reached through the manager, which treats everything that it says as a guest's
//! word. Called by the `sandboxvm` program's `serve`, within a multi-threaded tokio runtime.

mod access;
mod app;
mod builds;
mod channel;
mod concurrency;
mod config;
mod control_plane;
mod deadline;
mod front;
mod front_log;
mod front_process;
mod held;
mod launcher;
mod lingering_close;
mod listen;
mod metering;
mod quotas;
mod registry;
mod sandbox_plane;
mod server;
mod store;
mod telemetry;
mod templates;
mod traces;
mod volumes;
#[cfg(test)]
#[path = "../../tests/host/without_fsync.rs"]
mod without_fsync;

pub use access::{
    keys::{KeyError, KeyLimits, KeyStore, NewKey, ShownKey, WantedKey},
    tokens::TokenError,
};
pub use config::{
    Config, TemplateConfig, TlsFiles,
    images::ImagesConfig,
    network::{NamedPart, NetworkConfig, NetworkConfigError, NetworkLimits, Reachable},
};
pub use front::{ConfineError, FrontError, FrontUser, confine, serve_front, user_of_front};
pub use front_log::FrontLog;
pub use front_process::FrontMode;
pub use listen::TlsError;
pub use server::{Server, ServerError};
pub use traces::{Traces, TracesError};
