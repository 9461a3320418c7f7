//! The virtio devices of a machine, as the manager describes them: what each is launched with, what
//! each copy of a machine gets, and what a reset replaces.
//!
//! A new kind of device is a new variant at the end of each enum in which it needs something, and a
//! new version of the wire (`Message::since`): a machine without it is described as before.

use super::limits::{FdIndex, MAX_FDS};
use crate::{
    capped,
    ids::GuestCid,
    network::{MacAddress, Mtu},
};
use serde::{Deserialize, Serialize};

/// One device of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceConfig {
    /// A disk. A machine has up to [`super::MAX_DISKS`].
    Block(DiskConfig),
    /// The socket device.
    Vsock(VsockConfig),
    /// The entropy device.
    Rng,
    /// The balloon, through which the guest reports free pages. Left out of a machine that is
    /// restored from a snapshot without it.
    Balloon,
    /// The network card. It has no link until a socket for its frames is attached
    /// ([`super::ControlRequest::AttachNetwork`]), and neither has a copy of it.
    Net(NetConfig),
}

/// One virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskConfig {
    /// A raw image that is never written.
    ReadOnly {
        /// The image.
        image: FdIndex,
    },
    /// A raw template under copy-on-write layers.
    Writable {
        /// Raw image at the bottom; never written.
        template: FdIndex,
        /// Oldest first; the last is written, the others are frozen. An empty last file becomes a
        /// new layer.
        #[serde(with = "capped::List::<MAX_FDS>")]
        layers: Vec<FdIndex>,
    },
    /// A read-only disk of [`SLOT_CAPACITY`] bytes: the file, then zeros. A snapshot of a machine whose
    /// guest has not read the slot yet can be restored with another file.
    Slot {
        /// The file, at most as long as the disk. It may be empty, and is never written.
        file: FdIndex,
    },
    /// A disk of [`SLOT_CAPACITY`] bytes whose content outlives the machine: the file, then zeros that cannot be
    /// written. The file keeps its length. As for a slot, a snapshot of a machine whose guest has not used
    /// the disk yet can be restored with another file.
    Volume {
        /// The file, at most as long as the disk. It may be empty.
        file: FdIndex,
        /// The guest cannot write it.
        read_only: bool,
    },
}

/// Capacity of every [`DiskConfig::Slot`] and [`DiskConfig::Volume`] in bytes (1 TiB).
pub const SLOT_CAPACITY: u64 = 1 << 40;

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// Listening Unix socket; clients write `CONNECT <port>\n`.
    pub listener: FdIndex,
    /// The guest's CID.
    pub cid: GuestCid,
}

/// The network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Its hardware address.
    pub mac: MacAddress,
    /// Maximum size of an IP packet in either direction.
    pub mtu: Mtu,
}

/// What a device of a forked machine does not share with the device that it is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildDevice {
    /// Of a writable disk.
    Block {
        /// Empty file: the top layer of the copy.
        top: FdIndex,
    },
    /// Of the socket device.
    Vsock {
        /// As in [`VsockConfig`].
        listener: FdIndex,
    },
}

/// The files that a device of a machine gets when the machine is reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetDevice {
    /// Of a writable disk.
    Block {
        /// Oldest first: the layers of the snapshot, and an empty file on top.
        #[serde(with = "capped::List::<MAX_FDS>")]
        layers: Vec<FdIndex>,
    },
}
