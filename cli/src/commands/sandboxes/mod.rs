//! The commands on the machines themselves: to make, list, show, reach, stop and remove sandboxes.

pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod inspect;
pub(crate) mod ls;
pub(crate) mod network;
pub(crate) mod pause;
pub(crate) mod port;
pub(crate) mod resume;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod stop;
