//! The commands on what a sandbox changed in its copy of a project.

pub(crate) mod apply;
pub(crate) mod changes;
pub(crate) mod discard;
