//! The network card, if the machine has one: its address and routes when the machine boots, and the
//! end of a copy's connections when it receives its identity. A machine without a card pays one
//! ioctl at boot, and nothing later.
//!
//! The card, its neighbour and all addresses are the same in every machine
//! ([`sandboxvm_protocol::network`]), so nothing is asked of the network: no DHCP, no duplicate
//! address detection, no router advertisement, and the gateway is a permanent neighbour.

mod card;
mod connections;
mod netlink;

pub(crate) use card::{Card, resolver};
