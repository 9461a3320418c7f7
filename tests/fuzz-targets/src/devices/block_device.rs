//! A disk, with a driver that does anything.

use super::driver::Driver;
use crate::input::{Input, file};
use sandboxvm_vmm::devices::virtio::block::BlockDevice;

/// Input: the kind of disk, then the actions of the driver.
pub fn block_device(data: &[u8]) {
    let mut input = Input::new(data);
    let Some(kind) = input.byte() else { return };
    let device = match kind % 4 {
        0 => BlockDevice::read_only(file(&[0x11; 64 << 10])),
        2 => BlockDevice::slot(file(&[0x33; 1000])),
        _ => BlockDevice::writable(file(&[0x22; 64 << 10]), vec![file(b"")]),
    };
    Driver::new(Box::new(device.expect("the disk is valid"))).run(input, |_, _| ());
}
