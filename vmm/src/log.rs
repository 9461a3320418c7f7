//! What the VMM says to people: lines on standard error, which the manager gave it as its log.
//!
//! The log is a file on the host's disk, so a line may be lost. It never stops a machine: `eprintln!` panics when the
//! disk is full, and is not used in this crate.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Writes one line, or nothing where it cannot be written.
pub fn line(message: impl Display) {
    // The log is the only place to report that the log cannot be written.
    let _ = writeln!(io::stderr(), "sandboxvm-vmm: {message}");
}
