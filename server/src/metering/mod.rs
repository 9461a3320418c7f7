//! Measures of sandboxes: what they take of the machine, and how their machines ended. Types only; `registry` fills them.

pub(crate) mod ends;
pub(crate) mod samples;
pub(crate) mod traffic;
