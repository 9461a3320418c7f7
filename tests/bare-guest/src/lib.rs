//! A guest without an operating system. It is an interpreter of some two hundred machine instructions ([`program`]) that
//! a VMM boots as its kernel, and that then does, in ring 0 and with nothing in between, what a [`Script`] says: write
//! this to that register, wait for that word in memory, knock on that port. Scripts are written in Rust by the test that
//! wants them and put into the guest's memory with everything else the guest starts with ([`Image`]), so a case of a
//! test is one ELF file in memory, made in a millisecond, and no guest code has to be built for it.
//!
//! Owns the guest's memory map ([`layout`]), its instructions ([`Instruction`]) and the machine code. Knows no device
//! and no VMM. Called by the harness of the end-to-end tests.
//!
//! Why not a program per case: where ring 0 is interpreted each instruction takes up to a microsecond, so what the guest
//! would have to compute is computed here, by the host, beforehand.

mod image;
mod instruction;
pub mod layout;
mod program;
mod script;

pub use image::{Image, ImageError};
pub use instruction::{INSTRUCTION_SIZE, Instruction, Width};
pub use script::Script;
