//! Guest memory: the type, its mappings and memslots ([`mapping`]), where each page is in this process ([`pages`]), and
//! the pages that the guest gave back ([`released`]). Knows no device and no snapshot.

pub mod mapping;
pub mod pages;
pub mod released;

pub use mapping::{MemoryError, allocate, forget_writes, register, release};
use vm_memory::GuestMemoryMmap;

/// Guest memory. Owns the mappings in this process.
pub type GuestMemory = GuestMemoryMmap<()>;
