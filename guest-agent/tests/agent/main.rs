//! Runs the real binary of the agent as an ordinary process on a Unix socket, with the real
//! protocol.
//!
//! There is one module for each part of the protocol. `host` is a minimal host.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod changes;
mod details;
mod ending;
mod exec;
mod files;
mod host;
mod limits;
mod main_process;
mod ports;
mod processes;
mod remembered;
mod streams;
mod terminal;
mod wire;
