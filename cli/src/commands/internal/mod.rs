//! Commands that this program, its build and its packages run. The help does not list them.

pub(crate) mod cli_reference;
pub(crate) mod guard_terminal;
pub(crate) mod host_modes;
pub(crate) mod man_pages;
pub(crate) mod serve_front;
pub(crate) mod supervise;
