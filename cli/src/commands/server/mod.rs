//! The commands that serve sandboxes to others, and say who may use them.

pub(crate) mod key;
pub(crate) mod mcp;
pub(crate) mod serve;
