//! Which names a transfer may resolve, and which addresses it may connect to. Every connection asks, also those to
//! token services, mirrors and targets of redirects, before its name is resolved and again afterwards: a name cannot
//! change what it leads to between the question and the connection, and one that is not allowed reaches no resolver.

use std::{fmt, net::SocketAddr};

/// Decides whether a connection may be made.
pub trait Reach: Send + Sync + fmt::Debug {
    /// Returns true if the name `host` may be resolved. An address is not asked about.
    fn may_resolve(&self, host: &str) -> bool;
    /// Returns true if a connection to `address`, which `host` resolved to, is allowed.
    fn allows(&self, host: &str, address: SocketAddr) -> bool;
}

/// Allows every address: for users who pull for themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anywhere;

impl Reach for Anywhere {
    fn may_resolve(&self, _: &str) -> bool {
        true
    }

    fn allows(&self, _: &str, _: SocketAddr) -> bool {
        true
    }
}
