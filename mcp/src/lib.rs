//! Sandboxes as tools of the Model Context Protocol: an agent's host starts this, and its model makes and uses sandboxes.
//!
//! ```text
//! MCP client ── stdio (`lines` of JSON) ─┐
//!            ── http  (token, Host) ─────┴─> server ── tools/{lifecycle,run,files} ──> scope ──> manager (library)
//! ```
//! The model on the other side may do what a web page told it to: `scope` alone decides which sandboxes and snapshots a
//! call may reach, and these are the ones that this server made or was told to use. What a guest says is capped, made
//! valid UTF-8 and handed on as data (`capture`); nothing in it changes what a call does. The library never reads the
//! environment, and on stdout it writes the protocol alone. Called by the `sandboxvm` program's `mcp`, within a tokio
//! runtime.

mod capture;
mod hint;
mod http;
mod lines;
mod scope;
mod server;
mod settings;
mod stdio;
mod tools;

pub use http::{HttpError, HttpSettings, serve as serve_http};
pub use settings::Settings;
pub use stdio::{StdioError, serve as serve_stdio};
