//! The commands on the processes of a sandbox.

pub(crate) mod attach;
pub(crate) mod exec;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod ps;
pub(crate) mod wait;
