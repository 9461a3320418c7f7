//! `sandboxvm serve`, over real HTTP and with the clients of E2B.

mod access;
mod control;
mod deployment;
mod front;
mod listeners;
mod races;
mod recovery;
#[path = "../../host/registry.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "each test binary uses a part; a test ends by panicking")]
mod registry;
mod sdks;
mod shares;
mod tenants;
