//! The resolver with a real dialer, and real name servers in a network namespace that is the internet.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

#[path = "../internet/mod.rs"]
mod internet;
mod policy;
mod processes;
mod sandbox;
mod servers;
