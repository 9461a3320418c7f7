//! From a Dockerfile and a context directory to an image.
//!
//! ```text
//! Dockerfile ── dockerfile ──> stages ── plan ──> steps and configuration ──┐
//! context directory ── context ──> tar archive of a COPY, part of its key ──┼─ engine ──> image
//! sandboxes of a home ── machines ──> machines, states, layers, caches ─────┘
//! ```
//! Only `machines` knows the manager of sandboxes and the store of images; the engine sees both as
//! traits. The crate knows no command line, and pulls images only with a function of its caller. No
//! step is executed on the host. Dockerfiles, contexts and everything that a machine sends are
//! hostile: sizes are limited, and no file outside of the context is opened.

pub mod context;
pub mod dockerfile;
pub mod e2b;
pub mod engine;
pub mod key;
pub mod machines;
pub mod plan;
