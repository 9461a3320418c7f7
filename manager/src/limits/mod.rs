//! The limits of a sandbox, and whether the host has room for another one. May not create or end a
//! sandbox.

pub(crate) mod admission;
pub(crate) mod cpu_share;
pub(crate) mod disk_reservation;
pub(crate) mod kept;
pub(crate) mod ledger;
pub(crate) mod lifetime;
