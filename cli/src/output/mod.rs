//! What commands print besides the output of a guest: tables, JSON and the progress of a wait. It knows no sandbox.

pub(crate) mod age;
pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod size;
pub(crate) mod table;
