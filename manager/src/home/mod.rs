//! The home directory: what each path holds, and its files, links, names and locks.
//!
//! May not use any other module of the manager except `clock`. Everything above this module reads
//! and writes the home through it.

pub(crate) mod content;
pub(crate) mod directory;
pub(crate) mod flock;
pub(crate) mod host;
pub(crate) mod ids;
pub(crate) mod layout;
pub(crate) mod links;
pub(crate) mod locks;
pub(crate) mod names;
pub(crate) mod private;
pub(crate) mod rules;
pub(crate) mod staging;
pub(crate) mod trash;
