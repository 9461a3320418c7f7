//! Changes and ends sandboxes that exist: fork, reset, removal, and the sweep of what killed processes left behind.

mod create;
pub(crate) mod fork;
pub(crate) mod paused_to_disk;
pub(crate) mod remove;
pub(crate) mod reset;
pub(crate) mod sweep;
pub(crate) mod usage;
