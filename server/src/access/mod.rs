//! Who may do what: API keys for the control plane, tokens for single sandboxes. Nothing here is ever logged.

pub(crate) mod keys;
pub(crate) mod rate;
pub(crate) mod tokens;

use keys::KeyStore;
use rate::{Failures, RateLimits};
use tokens::Tokens;

#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) keys: KeyStore,
    pub(crate) tokens: Tokens,
    pub(crate) rates: RateLimits,
    pub(crate) failures: Failures,
}
