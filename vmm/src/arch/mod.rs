//! What depends on the guest's instruction set. Only x86-64 exists.

pub mod x86_64;
