//! Names: sandbox IDs, sandbox names, vsock addresses. Each type contains only valid values, even
//! if it was decoded from a hostile peer or file.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a string is not an ID or a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not an ID.
    #[error("invalid sandbox ID {0:?}: use 8-32 characters from a-z and 0-9")]
    Id(String),
    /// Not a name.
    #[error("invalid sandbox name {0:?}: use 1-63 characters from a-z, 0-9 and '-', not starting with '-'")]
    Name(String),
    /// Not a CID a guest may have.
    #[error("invalid vsock CID {0}: 0 to 2 and 4294967295 are reserved (virtio 1.2, 5.10.4)")]
    Cid(u32),
}

/// `[a-z0-9]{8,32}`. Never used for another sandbox.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// Encodes 10 random bytes (the caller's entropy) as 16 characters of `a-z2-7`.
    #[must_use]
    pub fn from_entropy(entropy: [u8; 10]) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let bits = entropy.iter().fold(0u128, |acc, byte| acc << 8 | u128::from(*byte));
        let text = (0..16).map(|i| char::from(ALPHABET[(bits >> (75 - 5 * i) & 31) as usize])).collect();
        Self(text)
    }

    /// Returns the ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SandboxId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let valid =
            (8..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if valid { Ok(Self(text)) } else { Err(IdError::Id(text)) }
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SandboxId({})", self.0)
    }
}

/// `[a-z0-9][a-z0-9-]{0,62}`: also a valid hostname label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxName(String);

impl SandboxName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SandboxName {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let valid = (1..=63).contains(&text.len())
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(text)) } else { Err(IdError::Name(text)) }
    }
}

impl From<SandboxName> for String {
    fn from(name: SandboxName) -> Self {
        name.0
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A vsock context ID that a guest may have. Each VM has its own vsock device, so all guests share [`GuestCid::DEFAULT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct GuestCid(u32);

impl GuestCid {
    /// The CID of every sandbox's guest.
    pub const DEFAULT: Self = Self(3);

    /// Returns the CID in the form of the device.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for GuestCid {
    type Error = IdError;

    fn try_from(cid: u32) -> Result<Self, IdError> {
        if cid > 2 && cid != u32::MAX { Ok(Self(cid)) } else { Err(IdError::Cid(cid)) }
    }
}

impl From<GuestCid> for u32 {
    fn from(cid: GuestCid) -> Self {
        cid.0
    }
}
