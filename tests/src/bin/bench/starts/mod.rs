//! From the request for a machine to its first instruction or its first output.

pub(crate) mod boot;
pub(crate) mod first_output;
pub(crate) mod jail;
pub(crate) mod pool;
pub(crate) mod restore;
