//! The Linux in a sandbox: what it has, its network card, its clocks, its processor, its random
//! numbers and its memory.

mod card;
mod copies;
mod linux;
mod reclaim;
mod syscall_entry;
mod time;
mod vector_registers;
