//! The microVM monitor: one process runs one virtual machine through `/dev/kvm`.
//!
//! This crate owns everything between KVM's ioctls and the guest: boot, vCPU threads, devices, the control socket. It
//! has no async runtime, HTTP, image or path policy: it opens `/dev/kvm` and nothing else, and is handed every other
//! file and socket as an open descriptor by the manager.
//!
//! ```text
//! main -> bring_up { confine, channel::launch (fd 0) } -> machine { memory, arch, vcpu threads -> devices::board }
//!      -> event_loop { channel::control, devices::set, snapshot, fork }
//! ```

pub mod arch;
pub mod bring_up;
pub mod channel;
pub mod confine;
pub mod devices;
#[cfg(feature = "escape-drills")]
pub mod drills;
pub mod event_loop;
pub mod fork;
pub mod gate;
pub mod log;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod process;
pub mod snapshot;
pub mod stats;
pub mod status;
pub mod timeline;
pub mod vcpu;
