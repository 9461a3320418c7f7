//! The balloon, with a driver that does anything.

use super::driver::{Driver, PAGES};
use crate::input::Input;
use sandboxvm_vmm::{devices::virtio::balloon::BalloonDevice, memory::released::ReleasedPages};
use std::sync::Arc;

/// Input: the actions of the driver.
pub fn balloon_device(data: &[u8]) {
    let released = Arc::new(ReleasedPages::none_of(PAGES));
    let device = BalloonDevice::new(Arc::clone(&released)).expect("an eventfd");
    Driver::new(Box::new(device)).run(Input::new(data), |_, _| ());
    // The released ranges are in memory, and in order.
    let pages = released.take();
    assert!(pages.iter().all(|range| range.start < range.end && range.end <= PAGES));
    assert!(pages.windows(2).all(|pair| pair[0].end <= pair[1].start));
}
