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
pub mod net;
mod resume;
mod ring;
pub mod rng;
mod transfer;
pub mod transport;
pub mod vsock;
