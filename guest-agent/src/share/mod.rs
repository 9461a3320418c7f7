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
//!
//! Before the machine's memory is copied, the host holds the share (`hold`): no request is under way then, and the
//! record of what the kernel refers to is in this process (`record`), which sends it on the next connection.

mod answers;
mod hold;
mod listener;
mod others;
mod record;
mod relay;
mod state;

pub(crate) use listener::{Endpoints, listen};
pub(crate) use relay::Relay;
