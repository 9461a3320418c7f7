//! The tools. Each file has the arguments and results of its tools and their implementation; all find sandboxes by `scope`.

mod arguments;
mod copies;
mod files;
mod lifecycle;
pub(crate) mod network;
mod run;
