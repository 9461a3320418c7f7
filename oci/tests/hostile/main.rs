//! Sources that lie, stall or break: registries, token services, archives, full disks and processes
//! that are killed. All servers are the tests' own, on loopback.

#![allow(clippy::unwrap_used, reason = "a test")]

mod archives;
mod crashes;
mod daemon;
mod downloads;
mod pulls;
mod pushes;
mod server;
mod tokens;
