//! The microVM monitor: one process runs one virtual machine through `/dev/kvm`.
//!
//! This crate owns everything between KVM's ioctls and the guest: boot, vCPU threads, devices, the control socket. It
//! has no async runtime, HTTP, image or path policy: it opens `/dev/kvm` and nothing else, and is handed every other
//! file and socket as an open descriptor by the manager.
//!
//! ```text
//! main -> bring_up { confine, launch (fd 0) } -> machine { memory, arch, vcpu threads -> devices::board }
//!      -> event_loop { control, devices, snapshot, fork }
//! ```

pub mod arch;
pub mod bring_up;
pub mod confine;
pub mod control;
pub mod descriptors;
pub mod devices;
pub mod disks;
#[cfg(feature = "escape-drills")]
pub mod drills;
pub mod event_loop;
pub mod fork;
pub mod gate;
pub mod launch;
pub mod log;
pub mod machine;
pub mod mailbox;
pub mod memory;
pub mod probe;
pub mod process;
pub mod snapshot;
pub mod spare_descriptor;
pub mod stats;
pub mod status;
pub mod timeline;
pub mod vcpu;
