//! Creates sandboxes: checks everything first, builds a directory in staging, launches a VMM that
//! boots a kernel or restores a snapshot, and waits for its agent. If this fails, or the caller
//! stops waiting, nothing may be left behind.

pub(crate) mod armed;
pub(crate) mod basis;
pub(crate) mod beginning;
pub(crate) mod error;
pub(crate) mod from_snapshot;
pub(crate) mod launch;
pub(crate) mod machine;
pub(crate) mod parts;
pub(crate) mod pool;
pub(crate) mod ready_snapshot;
pub(crate) mod spec;
pub(crate) mod staged;
mod start;
pub(crate) mod started;
pub(crate) mod warm_up;
