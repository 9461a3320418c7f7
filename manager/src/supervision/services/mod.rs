//! The services that a supervisor runs, one module each.

pub(super) mod child;
mod idle;
pub(super) mod listeners;
pub(super) mod network;
mod ports;
pub(super) mod shares;
mod ttl;

use super::service::Service;

/// Returns all services. Each decides by the record whether it has anything to do.
pub(super) fn all() -> Vec<Box<dyn Service>> {
    vec![
        Box::new(ports::Ports::new()),
        Box::new(ttl::TimeToLive::new()),
        Box::new(idle::Idle::new()),
        Box::new(network::Network::default()),
        Box::new(shares::Shares::default()),
    ]
}
