//! Who may do what: API keys for the control plane, tokens for single sandboxes. Nothing here is ever logged.
//!
//! The launcher alone has [`Credentials`]. The front limits how often clients ask.

pub(crate) mod keys;
pub(crate) mod rate;
pub(crate) mod signature;
pub(crate) mod tokens;

use keys::KeyStore;
use rate::{Failures, RateLimits};
use tokens::Tokens;

/// What credentials are checked against.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) keys: KeyStore,
    pub(crate) tokens: Tokens,
}

/// How often clients may ask, and fail.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    pub(crate) rates: RateLimits,
    pub(crate) failures: Failures,
}
