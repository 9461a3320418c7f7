//! The entropy device and a driver that does anything with it.

use crate::{driver::Driver, input::Input};
use sandboxvm_vmm::devices::virtio::rng::RngDevice;

/// Input: what the driver does.
pub fn rng_device(data: &[u8]) {
    Driver::new(Box::new(RngDevice::new().expect("a timer"))).run(Input::new(data), |_, _| ());
}
