//! virtio-vsock (virtio 1.2, 5.10) over a Unix socket: how the host talks to the agent in the guest.
//!
//! ```text
//!  client --Unix socket--> handshake --port--> connection --packets--> mux --buffers--> device --queues--> guest
//!          one epoll set (poller), one timer (deadlines)
//! ```
//!
//! Owns the listening socket's clients from accept to close. Never resolves a path, starts a thread, blocks, or keeps
//! bytes that the receive window did not promise: a client is read straight into the guest's buffers, and only when
//! there is one and the guest has room; bytes that a slow client does not take immediately wait in a bounded backlog, and
//! the guest gets new credit only after the client took them. Each call does a bounded amount of work and leaves the rest to the
//! next. Everything in a packet or a ring is taken for hostile: a wrong packet costs the guest that connection, a wrong
//! ring the device.
//!
//! A restored or forked machine gets a new device with a separate listener, which takes over the saved state and begins with
//! a transport reset.

mod completions;
mod connection;
mod deadlines;
mod device;
mod handshake;
mod kind;
mod limits;
mod mux;
mod pace;
mod packet;
mod poller;
mod ports;
mod state;
mod transport_reset;

#[cfg(test)]
mod tests;

pub use device::{VsockDevice, VsockOptions};
pub use kind::VsockKind;
pub use pace::OutputLimit;
