//! What a sandbox boots from: a [`bundle`] of VMM, guest kernel, base image and agent disk, each checked before a VM
//! starts ([`kernel`], [`erofs`]), and the [`template`] of its writable disk.
//!
//! The library takes paths. It reads no environment variable, writes nothing to a terminal and knows no home
//! directory; `cli` finds those and hands them in.

pub mod bundle;
pub mod erofs;
pub mod file_version;
pub mod kernel;
pub mod regular;
pub mod template;
pub mod volume;
