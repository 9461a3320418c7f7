//! TLS that is ended for hosts with a header rule or a secret, with real TLS servers on loopback and real TLS clients in
//! the place of the guest.

mod handshakes;
mod placeholders;
mod requests;
mod streams;
mod world;
