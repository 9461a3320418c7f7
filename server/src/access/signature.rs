//! Claims to one file of a sandbox: a client that has the sandbox's token signs a path, an operation and a user with it, and can
//! give the claim to others. Only the holder of the server's secret can verify it.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Of a path of a guest.
const MAX_PATH: usize = 4096;
/// Longer than a name of a user, and than a signature.
const MAX_USER: usize = 256;

/// What a request says that it may do, and the signature that is to prove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    pub(crate) path: String,
    pub(crate) operation: Operation,
    /// Without a colon: the parts are joined by colons, so a claim could be read as another one with the same text.
    pub(crate) user: String,
    /// Unix time in seconds.
    pub(crate) until: Option<u64>,
    pub(crate) given: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    Read,
    Write,
}

/// What is wrong with a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    Signature,
    Expired,
}

impl Claim {
    /// Path, operation and user, hashed: the token follows, and then the expiry.
    fn begun(&self) -> Sha256 {
        let operation = match self.operation {
            Operation::Read => "read",
            Operation::Write => "write",
        };
        Sha256::new().chain_update(format!("{}:{operation}:{}:", self.path, self.user))
    }

    fn signature_after(&self, begun: &Sha256, token: &str) -> String {
        let mut hash = begun.clone().chain_update(token);
        if let Some(until) = self.until {
            hash.update(format!(":{until}"));
        }
        format!("v1_{}", BASE64_STANDARD_NO_PAD.encode(hash.finalize()))
    }

    /// The signature that this token makes.
    #[cfg(test)]
    pub(crate) fn signature(&self, token: &str) -> String {
        self.signature_after(&self.begun(), token)
    }

    fn is_signed_after(&self, begun: &Sha256, token: &str) -> Choice {
        let is_unambiguous = Choice::from(u8::from(!self.user.contains(':')));
        self.signature_after(begun, token).as_bytes().ct_eq(self.given.as_bytes()) & is_unambiguous
    }

    /// Whether a path and a user are no longer than those of a guest: what is longer is signed for nothing, and is not hashed.
    pub(crate) fn is_short(&self) -> bool {
        self.path.len() <= MAX_PATH && self.user.len() <= MAX_USER && self.given.len() <= MAX_USER
    }

    /// Whether it was signed with this token, and has not expired.
    pub(crate) fn check(&self, token: &str, now: u64) -> Result<(), Problem> {
        match self.is_short() && bool::from(self.is_signed_after(&self.begun(), token)) {
            true => self.is_in_time(now),
            false => Err(Problem::Signature),
        }
    }

    /// Whose token it was signed with. All are tried, whichever it is: how long it takes says how many there are and no more.
    pub(crate) fn signer<E>(&self, all: impl Iterator<Item = E>, token: impl Fn(&E) -> String) -> Option<E> {
        let begun = self.begun();
        all.fold(
            None,
            |found, one| {
                if bool::from(self.is_signed_after(&begun, &token(&one))) { Some(one) } else { found }
            },
        )
    }

    /// The expiry is part of what was signed, so it is the signer's.
    pub(crate) fn is_in_time(&self, now: u64) -> Result<(), Problem> {
        match self.until {
            Some(until) if until < now => Err(Problem::Expired),
            _ => Ok(()),
        }
    }
}
