//! The commands on this host: what it can do, what is left on it, and what was done.

pub(crate) mod audit;
pub(crate) mod completion;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod prune;
