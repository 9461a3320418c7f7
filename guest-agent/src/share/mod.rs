//! The guest's end of a live share: a process that passes the messages of the guest's kernel to a
//! connection of the host, and the answers back. It looks at no message but at its head.
//!
//! ```text
//! programs ── kernel ── /dev/fuse ── requests ──> connection of the host
//!                          ^───────── answers ──────┘
//! ```
//! The host connects, to a vsock port for each share. When a connection ends, as when the process of the
//! host dies or the machine is restored, requests without an answer fail with EIO, and the next
//! connection serves the same mount: INIT, which the kernel sends once, is repeated on it. Requests that
//! come in between wait for a few seconds.

mod listener;
mod others;
mod relay;
mod state;

pub(crate) use listener::listen;
pub(crate) use relay::{Endpoints, Relay};
