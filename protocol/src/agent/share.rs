//! A live share: a directory or file that a process of the host serves, mounted in the guest. The agent
//! passes the messages of the guest's kernel (FUSE) to connections of the host, as they are.
//!
//! The host asks for the mount once ([`super::files::FileOperation::MountShare`]). It then connects to the vsock
//! port of the share, with one connection at a time. A connection carries no frames of this wire. When it
//! ends, requests without an answer fail in the guest, and the next connection serves the same mount.
//!
//! A connection to the second port of the share holds it ([`ShareNumber::hold_port`]): before a snapshot or a
//! fork, the host connects there and waits for [`HELD`]. Until the host sends a byte, or the connection has ended
//! for a moment, no request of the guest leaves the machine.

use super::files::FilePath;
use serde::{Deserialize, Serialize};

/// Vsock port of share 0. Ports below 1024 are for root of the guest only.
const FIRST_PORT: u32 = 512;

/// The byte that the agent sends when no request to the host is under way any more.
pub const HELD: u8 = 1;

/// The number of a share in its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct ShareNumber(u8);

/// The number of a share is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid number of a share {0}: must be below {max}", max = ShareNumber::COUNT)]
pub struct ShareNumberError(u8);

impl ShareNumber {
    /// Number of shares that a sandbox can have.
    pub const COUNT: u8 = 16;

    /// Returns all numbers, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Returns the vsock port on which the agent listens for connections that serve the share.
    #[must_use]
    pub fn port(self) -> u32 {
        FIRST_PORT + u32::from(self.0)
    }

    /// Returns the vsock port on which the agent listens for connections that hold the share.
    #[must_use]
    pub fn hold_port(self) -> u32 {
        FIRST_PORT + u32::from(Self::COUNT) + u32::from(self.0)
    }
}

impl TryFrom<u8> for ShareNumber {
    type Error = ShareNumberError;

    fn try_from(number: u8) -> Result<Self, ShareNumberError> {
        if number < Self::COUNT { Ok(Self(number)) } else { Err(ShareNumberError(number)) }
    }
}

impl From<ShareNumber> for u8 {
    fn from(number: ShareNumber) -> Self {
        number.0
    }
}

impl std::fmt::Display for ShareNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A request to mount a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// Which share.
    pub number: ShareNumber,
    /// Absolute path of the directory or file, which is created if it is missing.
    pub at: FilePath,
    /// False for a file.
    pub is_directory: bool,
    /// Refuse changes in the guest's kernel already.
    pub read_only: bool,
}
