//! The files that a sandbox boots from: a [`bundle`] of VMM, guest kernel, base image and agent
//! disk, each checked before a VM starts ([`kernel`], [`erofs`]), and the [`template`] of its
//! writable disk.
//!
//! The library receives paths. It may not read environment variables, write to a terminal or know
//! the home directory; `cli` finds these and passes them in. `manager` and `cli` call it.

pub mod bundle;
pub mod erofs;
pub mod identity;
pub mod kernel;
pub mod regular;
pub mod template;
