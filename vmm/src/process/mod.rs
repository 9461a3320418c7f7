//! Processes forked off the VMM: [`split`] makes one, [`writer`] is one that writes files while the machine runs.

pub mod split;
pub mod writer;
