//! The VMM as a process of the host: how it is spawned, what it receives, what it reports, and how
//! it is ended with everything that it started.
//!
//! Only [`spawn`] may start a VMM, and only [`end`] may end one. This module knows nothing about
//! the guest of a VMM.

pub(crate) mod card;
pub(crate) mod control;
pub(crate) mod descriptors;
pub(crate) mod end;
pub(crate) mod family;
pub(crate) mod group;
pub(crate) mod last_words;
pub(crate) mod launch;
pub(crate) mod lock;
pub(crate) mod pidfd;
pub(crate) mod spawn;
pub(crate) mod state;
pub(crate) mod wire;
