//! How a request reaches the agent and its answer comes back: over a connection of this process, or of another one that may
//! open the sandbox's directory.

pub(crate) mod agent;
pub(crate) mod answer;
mod conveyed;
pub(crate) mod courier;
mod direct;
mod reach;
pub(crate) mod remote;
pub(crate) mod request;
pub(crate) mod route;
