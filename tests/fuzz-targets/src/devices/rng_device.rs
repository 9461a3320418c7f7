//! The entropy device, with a driver that does anything.

use super::driver::Driver;
use crate::input::Input;
use sandboxvm_vmm::devices::virtio::rng::RngDevice;

/// Input: the actions of the driver.
pub fn rng_device(data: &[u8]) {
    Driver::new(Box::new(RngDevice::new().expect("a timer"))).run(Input::new(data), |_, _| ());
}
