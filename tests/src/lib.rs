//! Harness of the end-to-end tests and benchmarks. It runs the real `sandboxvm` with real guests,
//! in a separate home for each test, and checks from outside what is left on the host.
//!
//! - [`home`]: a new `SANDBOXVM_HOME`, the sandboxes in it, and its removal.
//! - [`cli`]: one invocation of `sandboxvm`, with a deadline.
//! - [`bare`]: machines without an operating system, whose kernel is a script of the test.
//! - [`seed`]: the booted machine that all homes share.
//! - [`server`]: `sandboxvm serve`, and requests to it.
//! - [`envd`], [`server_load`]: one sandbox of a server, and many clients at the same time.
//! - [`server_attack`]: attacks of one key on a server.
//! - [`snapshots`]: the snapshots of a home.
//! - [`terminal`]: an invocation on a pseudo-terminal.
//! - [`processes`]: the processes of the host that use a home.
//! - [`leaks`]: what is left of a home: processes, files, mounts, sockets.
//! - [`memory`]: the resident memory of a VMM, without the guest's memory, and of a CLI.
//! - [`json_shape`]: which members JSON has, and of which types.
//! - [`waiting`]: repeats a question until another process has done something.
//! - [`artefacts`]: finds the programs and guest images under test.
//!
//! Functions here panic when they fail, as their callers are tests. They never touch a process or a
//! file that does not belong to the home they work on.

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
