//! The process behind a sandbox's network card, and its dialer: the network stack that answers the guest, the resolver,
//! and what carries the flows that the policy allows.
//!
//! Everything that comes from the guest, and from the network, is hostile. Neither process opens a file once it serves,
//! and the egress process opens no socket either: its dialer does.

pub mod confinement;
pub mod credentials;
pub mod dialer;
pub mod dialing;
pub mod flows;
pub mod http;
pub mod packets;
pub mod rates;
pub mod records;
pub mod resolver;
pub mod serving;
pub mod session;
pub mod stack;
pub mod tls;
