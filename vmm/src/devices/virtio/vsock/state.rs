//! What of the device a snapshot keeps. Connections are not part of it: they end at a restore.

use sandboxvm_protocol::identity::GuestCid;
use serde::{Deserialize, Serialize};

/// The saved device; the queues and features are the transport's to save.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's CID.
    pub guest_cid: GuestCid,
    /// The host port of the next connection, so that a clone does not reuse one its guest still remembers.
    pub next_host_port: u32,
    /// Heads of transmitted chains that the driver has not got back, at most 16.
    pub held_transmit_heads: Vec<u16>,
    /// `avail.idx` of the event queue at which the guest has taken note of an earlier transport reset, if it has not.
    pub reset_noted_at: Option<u16>,
}
