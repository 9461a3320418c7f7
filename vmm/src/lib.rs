//! The microVM monitor: one process runs one virtual machine through `/dev/kvm`.
//!
//! This crate owns everything between KVM's ioctls and the guest: boot, vCPU threads, devices, the control socket. It
//! has no async runtime, HTTP, image or path policy: it opens `/dev/kvm` and nothing else, and is handed every other
//! file and socket as an open descriptor by the manager.

pub mod devices;
