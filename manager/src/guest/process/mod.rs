//! Processes of a sandbox: what is asked for, what runs, and their streams.

pub(crate) mod attach_spec;
pub(crate) mod exec;
pub(crate) mod running;
pub(crate) mod spec;
