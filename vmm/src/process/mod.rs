//! Processes forked off the VMM: [`split`] makes one, [`writer`] is one that writes files while the machine runs, and
//! [`failure`] says of what kind the host's failures are.

pub mod failure;
pub mod split;
pub mod writer;
