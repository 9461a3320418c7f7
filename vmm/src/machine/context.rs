//! What a machine has from its beginning to its end. A fork continues with the same: its memory is
//! a copy of the parent's, and the pages that the guest gave back are those of the parent.

use crate::memory::{GuestMemory, released::ReleasedPages};
use kvm_ioctls::Kvm;
use sandboxvm_protocol::machine::{HostMode, MemorySize};
use std::sync::Arc;

/// See the module.
#[derive(Debug, Clone)]
pub struct MachineContext {
    /// /dev/kvm, from which a fork makes its own virtual machine.
    pub kvm: Arc<Kvm>,
    /// What executes guest ring 0.
    pub host_mode: HostMode,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Size of guest memory.
    pub memory_size: MemorySize,
    /// Pages that the guest gave back since the last snapshot.
    pub released: Arc<ReleasedPages>,
    /// Maximum size of the console's log, in bytes.
    pub console_limit: u64,
}
