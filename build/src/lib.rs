//! Builds images: from a Dockerfile and a context directory to the steps of each stage, and the
//! engine that executes them.
//!
//! ```text
//! Dockerfile ── dockerfile ──> stages ── plan ──> steps ── engine ──> Machines (trait)
//! context directory ── context ──> tar of a COPY, hash of its content ──┘
//! ```
//! The crate knows no virtual machine, no registry and no command line: it starts machines only
//! through [`engine::Machines`]. Dockerfiles and contexts are hostile: sizes are limited, and no
//! file outside of the context is opened.

pub mod config;
pub mod context;
pub mod dockerfile;
pub mod key;
pub mod plan;
