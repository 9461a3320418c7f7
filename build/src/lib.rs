//! From a Dockerfile and a context directory to the steps of each stage, and to the files that a
//! step copies.
//!
//! ```text
//! Dockerfile ── dockerfile ──> stages ── plan ──> steps and configuration
//! context directory ── context ──> tar archive of a COPY, part of its cache key
//! ```
//! The crate knows no virtual machine, no registry and no command line, and executes nothing.
//! Dockerfiles and contexts are hostile: sizes are limited, and no file outside of the context is
//! opened.

pub mod context;
pub mod dockerfile;
pub mod e2b;
pub mod engine;
pub mod key;
pub mod machines;
pub mod plan;
