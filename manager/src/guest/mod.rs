//! Requests to the agent in the guest: processes, files, ports, identity and shutdown.
//!
//! A guest wrote everything that arrives here, and it is hostile. Only this module may open
//! connections to the agent.

pub(crate) mod authority;
pub(crate) mod connection;
pub(crate) mod error;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod in_use;
pub(crate) mod interruption;
mod pause;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod shares;
pub(crate) mod silence;
pub(crate) mod stop;
