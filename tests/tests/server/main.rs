//! `sandboxvm serve`, over real HTTP and with the clients of E2B.

mod access;
mod control;
mod deployment;
mod front;
mod listeners;
mod races;
mod recovery;
mod sdks;
mod shares;
mod tenants;
