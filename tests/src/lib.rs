//! Harness of the end-to-end tests and benchmarks. It runs the real `sandboxvm` with real guests,
//! in a separate home for each test, and checks from outside what is left on the host.
//!
//! - [`home`]: a new `SANDBOXVM_HOME`, the sandboxes in it, and its removal.
//! - [`cli`]: one invocation of `sandboxvm`, with a deadline, also on a pseudo-terminal.
//! - [`bare`]: machines without an operating system, whose kernel is a script of the test.
//! - [`seed`]: the booted machine that all homes share.
//! - [`server`]: `sandboxvm serve`, requests to it and to one of its sandboxes, many clients at the
//!   same time, and attacks of one key.
//! - [`snapshots`]: the snapshots of a home.
//! - [`host`]: what a test sees on the host: processes that use a home, what is left of it, and the
//!   resident memory of a VMM and of a CLI.
//! - [`json_shape`]: which members JSON has, and of which types.
//! - [`namespace`]: a network namespace with servers, so that nothing beyond this machine is reached.
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
pub mod home;
pub mod host;
pub mod interruption;
pub mod json_shape;
pub mod library;
pub mod namespace;
pub mod seed;
pub mod server;
pub mod snapshots;
pub mod standstill;
pub mod waiting;
