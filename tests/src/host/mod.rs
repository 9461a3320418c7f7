//! What a test sees on the host, from outside of the programs under test.

pub mod leaks;
pub mod memory;
pub mod processes;
