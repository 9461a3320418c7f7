//! The server that E2B's own clients talk to, on one machine, with nothing beside it.
//!
//! ```text
//! control plane (api listener)      ─┐
//!   X-API-KEY ──> access ────────────┤
//!                                    ├──> registry ──> manager (library) ──> microVMs
//! sandbox plane (sandboxes listener)─┤      │
//!   Host or E2b-Sandbox-Id ─> envd ──┤      └─ what is known of each sandbox: owner, time, metadata; on disk
//!                          └> traffic ┘         before it is answered, read again after a restart
//! ```
//! `registry` alone decides over the life of a sandbox; `access` alone knows keys and tokens; `control_plane` and
//! `sandbox_plane` translate requests and own no state. The guest is asked through the manager, which takes everything
//! it says for a guest's word. Called by the `sandboxvm` program's `serve`, within a multi-threaded tokio runtime.

mod access;
mod app;
mod config;
mod control_plane;
mod deadline;
mod held;
mod listen;
mod registry;
mod room;
mod sandbox_plane;
mod server;
mod telemetry;
mod unread;

pub use access::{
    keys::{KeyError, KeyLimits, KeyStore, NewKey, ShownKey, WantedKey},
    tokens::TokenError,
};
pub use config::{Config, TemplateConfig, TlsFiles};
pub use server::{Server, ServerError};
pub use telemetry::traces::{Traces, TracesError};
