//! The agent in the guest, by request: processes, files, ports, identity and shutdown.
//!
//! Everything that arrives here was written by a guest and is hostile. Only this module opens connections to the agent.

pub(crate) mod agent;
pub(crate) mod attach_spec;
pub(crate) mod error;
pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod in_use;
pub(crate) mod interruption;
mod pause;
pub(crate) mod ports;
pub(crate) mod process_spec;
pub(crate) mod processes;
mod reach;
pub(crate) mod request;
pub(crate) mod silence;
pub(crate) mod stop;
