//! Commands that this program and its build run themselves. They are in no help.

pub(crate) mod cli_reference;
pub(crate) mod guard_terminal;
pub(crate) mod man_pages;
pub(crate) mod serve_front;
pub(crate) mod supervise;
