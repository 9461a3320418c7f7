//! Devices of a machine, with drivers that do anything.

mod balloon_device;
mod block_device;
mod driver;
mod net_device;
mod rng_device;
mod serial_console;
mod virtqueue;
mod vsock_device;

pub use balloon_device::balloon_device;
pub use block_device::block_device;
pub use net_device::net_device;
pub use rng_device::rng_device;
pub use serial_console::serial_console;
pub use virtqueue::virtqueue;
pub use vsock_device::vsock_device;
