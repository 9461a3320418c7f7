//! The host side of a live share: serves one directory or file of the host to a guest, over FUSE on a
//! stream socket. The guest's kernel is hostile: every request may be invalid or an attack.
//!
//! ```text
//! guest's kernel ── /dev/fuse ── agent ── vsock ── VMM ── stream ── serve: threads
//!                                                                     │ protocol: bytes to requests
//!                                                                     v
//!              root: the only door to the host's files <── server: one answer for each request
//!                                                           nodes, handles: what the guest refers to
//! ```
//! A volume (`volume`) is a share with limits and with owners of files. Clients of its content API are served by
//! `content`, in a process like that of a share. `copy` copies a share for a copy of its machine.
//!
//! A lookup is one component, resolved by openat2(2) below a directory that was found in the same way.
//! No path with more than one component, and no link, is ever resolved. Nothing of a sandbox is known
//! here: not its agent, and not where the guest mounts the share.

pub mod confinement;
pub mod content;
pub mod copy;
mod handles;
mod limits;
mod nodes;
mod protocol;
mod root;
mod serve;
mod server;
mod volume;

pub use copy::Copied;
pub use protocol::MAX_MESSAGE;
pub use root::{Root, RootError};
pub use serve::{ServeError, serve};
pub use server::{Owner, Server, Settings};
pub use volume::{Boot, FILES, Limits, Volume, boot, prepare};
