//! Which addresses a transfer may connect to. Every connection asks, also those to token services,
//! mirrors and targets of redirects, and after the name was resolved: a name cannot change what it
//! leads to between the question and the connection.

use std::{fmt, net::SocketAddr};

/// Decides whether a connection may be made.
pub trait Reach: Send + Sync + fmt::Debug {
    /// Returns true if a connection to `address`, which `host` resolved to, is allowed.
    fn allows(&self, host: &str, address: SocketAddr) -> bool;
}

/// Allows every address: for users who pull for themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anywhere;

impl Reach for Anywhere {
    fn allows(&self, _: &str, _: SocketAddr) -> bool {
        true
    }
}
