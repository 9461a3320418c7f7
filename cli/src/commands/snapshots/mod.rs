//! The commands that keep, copy and bring back the state of a machine.

pub(crate) mod fork;
pub(crate) mod reset;
pub(crate) mod snapshot;
