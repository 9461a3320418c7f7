//! Harness of the end-to-end tests and benchmarks: drives the real `sandboxvm` on real guests, in a home of its own
//! per test, and looks at the host from outside for what it left.
//!
//! - [`home`]: a fresh `SANDBOXVM_HOME`, the sandboxes made in it, and taking all of it away again.
//! - [`cli`]: one invocation of `sandboxvm`, with a deadline.
//! - [`bare`]: machines without an operating system, whose kernel is a script of the test's.
//! - [`seed`]: the booted machine that all homes share.
//! - [`server`]: `sandboxvm serve`, and requests to it.
//! - [`envd`], [`server_load`]: one sandbox of a server, and many clients at once.
//! - [`server_attack`]: one key of a server at its worst.
//! - [`snapshots`]: the snapshots of a home.
//! - [`terminal`]: an invocation on a pseudo-terminal.
//! - [`processes`]: the processes of the host that have to do with a home.
//! - [`leaks`]: what is left of it: processes, files, mounts, sockets.
//! - [`memory`]: what a VMM and a CLI keep resident, guest memory apart.
//! - [`json_shape`]: which members JSON has, and of which types.
//! - [`waiting`]: asking again and again until another process has done something.
//! - [`artefacts`]: where the binaries and guest images under test are.
//!
//! Everything here panics when it cannot do its work: its callers are tests. It never touches a process or a file that
//! does not belong to the home it was asked about.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod artefacts;
pub mod bare;
pub mod cli;
pub mod drills;
pub mod envd;
pub mod home;
pub mod interruption;
pub mod json_shape;
pub mod leaks;
pub mod library;
pub mod memory;
pub mod processes;
pub mod seed;
pub mod server;
pub mod server_attack;
pub mod server_load;
pub mod snapshots;
pub mod standstill;
pub mod terminal;
pub mod waiting;
