//! Requests to the agent in the guest: processes, files, ports, identity and shutdown.
//!
//! A guest wrote everything that arrives here, and it is hostile. Only this module may open
//! connections to the agent.

pub(crate) mod agent;
pub(crate) mod answer;
pub(crate) mod attach_spec;
pub(crate) mod authority;
mod conveyed;
pub(crate) mod courier;
mod direct;
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
pub(crate) mod remote;
pub(crate) mod request;
pub(crate) mod route;
pub(crate) mod silence;
pub(crate) mod stop;
