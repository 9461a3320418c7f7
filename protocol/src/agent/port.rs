//! Connections to programs in the guest.
//!
//! Only ports of the guest's loopback can be reached. Other addresses on which a program listens
//! are for the guest only.

use serde::{Deserialize, Serialize};

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct PortNumber(u16);

/// Not a port number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid guest port 0: must be between 1 and 65535")]
pub struct PortError;

impl PortNumber {
    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for PortNumber {
    type Error = PortError;

    fn try_from(number: u16) -> Result<Self, PortError> {
        if number == 0 { Err(PortError) } else { Ok(Self(number)) }
    }
}

impl From<PortNumber> for u16 {
    fn from(port: PortNumber) -> Self {
        port.0
    }
}

impl std::fmt::Display for PortNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The target of a connection: 127.0.0.1 or, if no program listens there, ::1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// The port.
    pub port: PortNumber,
}
