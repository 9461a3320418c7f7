//! TLS that is ended for hosts with a header rule or a secret, with real TLS servers on loopback and real TLS clients in
//! the place of the guest.

#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod handshakes;
mod placeholders;
mod requests;
mod signing;
mod streams;
mod world;
