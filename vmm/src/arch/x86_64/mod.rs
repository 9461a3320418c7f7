//! x86-64: where things lie in guest memory, how a vCPU is set up before its first instruction, and what this host's
//! KVM can execute. Knows nothing of devices beyond their addresses.

pub mod boot;
pub mod cmdline;
pub mod cpuid;
pub mod emulation;
mod extended_state;
pub mod host_mode;
pub mod layout;
pub mod mptable;
mod paging;
pub mod registers;
pub mod saved_cpu;
pub mod state;
