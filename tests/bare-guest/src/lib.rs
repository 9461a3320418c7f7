//! A guest without an operating system: an interpreter of about two hundred machine instructions
//! ([`program`]), which a VMM boots as its kernel. In ring 0, without any other software, it
//! executes a [`Script`]: write to this register, wait for that word in memory, write to that port.
//! The test writes the script in Rust, and puts it into the guest's memory with everything else
//! that the guest needs at its start ([`Image`]). So a test case is one ELF file in memory, which
//! is made in a millisecond, and no guest code has to be compiled for it.
//!
//! Owns the guest's memory map ([`layout`]), its instructions ([`Instruction`]), the machine code
//! and the bytes of a virtqueue ([`virtqueue`]). Knows no device and no VMM. The harness of the
//! end-to-end tests uses it, and the tests of the VMM's devices use the virtqueue.
//!
//! A separate program per case would be slower: if ring 0 is interpreted, each instruction takes up
//! to a microsecond. So the host computes everything beforehand that the guest would have to
//! compute.

mod image;
mod instruction;
pub mod layout;
mod program;
mod script;
pub mod virtqueue;

pub use image::{Image, ImageError};
pub use instruction::{INSTRUCTION_SIZE, Instruction, Width};
pub use script::Script;
