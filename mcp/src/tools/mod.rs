//! The tools. Each file has what its tools take and answer, and how they do it; all go through `scope` for a sandbox.

mod arguments;
mod copies;
mod files;
mod lifecycle;
mod run;
