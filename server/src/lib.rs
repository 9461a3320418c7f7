//! A server for E2B's own clients, on one machine and without other services.
//!
//! ```text
//! control plane (api listener)      ─┐
//!   X-API-KEY ──> access ────────────┤
//!                                    ├──> registry ──> manager (library) ──> microVMs
//! sandbox plane (sandboxes listener)─┤      │
//!   Host or E2b-Sandbox-Id ─> envd ──┤      └─ what is known of each sandbox: owner, time, metadata; on disk
//!                          └> traffic ┘         before it is answered, read again after a restart
//! ```
//! `registry` alone decides over the life of a sandbox; below it, `templates` says what sandboxes are made from, `quotas` what a
//! key may have, and `metering` what sandboxes took. `access` alone knows keys and tokens. `control_plane` and `sandbox_plane`
//! translate requests; the only state of their own is what envd remembers of a sandbox until the server ends. The guest is
//! reached through the manager, which treats everything that it says as a guest's word. Called by the `sandboxvm` program's `serve`, within a multi-threaded tokio runtime.

mod access;
mod app;
mod concurrency;
mod config;
mod control_plane;
mod deadline;
mod held;
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
#[cfg(test)]
#[path = "../../tests/host/without_fsync.rs"]
mod without_fsync;

pub use access::{
    keys::{KeyError, KeyLimits, KeyStore, NewKey, ShownKey, WantedKey},
    tokens::TokenError,
};
pub use config::{Config, TemplateConfig, TlsFiles};
pub use server::{Server, ServerError};
pub use telemetry::traces::{Traces, TracesError};
