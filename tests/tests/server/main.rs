//! `sandboxvm serve`, over real HTTP and with the clients of E2B.

mod access;
mod control;
mod deployment;
mod front;
mod listeners;
mod races;
mod recovery;
#[path = "../../host/registry.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod registry;
mod sdks;
mod shares;
mod tenants;
