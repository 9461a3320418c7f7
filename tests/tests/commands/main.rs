//! Commands of the CLI that run programs in a sandbox: their streams, their ends, and what they print.

mod bad_input;
mod console;
mod exec;
mod interrupted;
mod json;
mod killed_cli;
mod many_execs;
mod processes;
mod readers;
mod run;
mod self_test;
mod streaming;
mod terminal;
mod umask;
