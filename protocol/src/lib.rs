//! The wires of sandboxvm, as data: host <-> guest agent ([`agent`]), manager <-> VMM ([`vmm`]), and those of a
//! sandbox's network ([`egress`]).
//!
//! This crate owns the message types, the framing ([`frame`]), the size limits and the version handshake. It never
//! performs I/O and never allocates more than the cap its caller states, so the same code serves the VMM, the manager
//! and PID 1 of the guest. Depends on no other crate of the workspace.

pub mod agent;
mod capped;
pub mod egress;
pub mod frame;
pub mod ids;
pub mod machine;
pub mod network;
pub mod vmm;
