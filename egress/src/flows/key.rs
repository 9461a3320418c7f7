//! What tells a flow from all others of a guest.

use crate::stack::packet::{Content, Packet};
use sandboxvm_egress_policy::rule::Protocol;
use sandboxvm_protocol::egress::Transport;
use std::net::IpAddr;

/// A flow: its transport, the guest's end and the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Transport.
    pub transport: Transport,
    /// The guest's port, or the identifier of its echo requests.
    pub from: u16,
    /// Address of the other end, as the guest wrote it.
    pub address: IpAddr,
    /// Port there; 0 for echo requests.
    pub port: u16,
}

impl Key {
    /// Returns the flow that a packet belongs to.
    #[must_use]
    pub fn of(packet: &Packet<'_>) -> Self {
        let (transport, from, port) = match packet.content {
            Content::Tcp { from, to, .. } => (Transport::Tcp, from, to),
            Content::Udp { from, to, .. } => (Transport::Udp, from, to),
            Content::Echo { identifier, .. } => (Transport::Icmp, identifier, 0),
        };
        Self { transport, from, address: packet.destination, port }
    }

    /// Returns the protocol as rules name it.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Icmp => Protocol::Icmp,
        }
    }
}
