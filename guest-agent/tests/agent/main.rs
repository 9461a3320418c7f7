//! The agent's real binary, run as an ordinary process on a Unix socket and driven over its real wire.
//!
//! One module for each part of its promise; `host` is the other end of the wire, as small as it can be.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod details;
mod ending;
mod exec;
mod files;
mod host;
mod limits;
mod ports;
mod processes;
mod remembered;
mod streams;
mod terminal;
mod wire;
