//! Device models: everything a guest can reach by port or MMIO access.

pub mod virtio;
