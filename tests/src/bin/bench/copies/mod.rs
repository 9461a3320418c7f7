//! Snapshots and forks of a machine, many machines of one snapshot, and the way back to it.

pub(crate) mod clones;
pub(crate) mod fork;
pub(crate) mod reset;
pub(crate) mod snapshot;
