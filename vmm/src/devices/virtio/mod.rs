//! virtio 1.2 over MMIO: the transport, and the devices behind it.

pub mod balloon;
pub mod block;
mod bucket;
pub mod chain;
pub mod device;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod mock_driver;
mod resume;
pub mod rng;
pub mod transport;
pub mod vsock;
