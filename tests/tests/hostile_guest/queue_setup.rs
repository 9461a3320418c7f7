//! Invalid queues: sizes that are not allowed, and rings outside of memory, on devices, on each
//! other, or around the end of the address space. The device must stop or work as far as it can,
//! and must work after a reset.

use crate::{
    artefacts,
    devices::{self, Device},
    rings::works_again,
};
use sandboxvm_bare_guest::{Image, layout};
use sandboxvm_tests::bare::{
    BareMachine, Shape,
    driver::{EVENT_IDX, NEEDS_RESET, Rings, VERSION_1, Window, register},
};

/// Size of the guest's memory, and so the first address behind it.
const END: u64 = 64 << 20;

/// A queue, and whether the device must refuse it.
struct Setup {
    rings: Rings,
    refused: bool,
}

fn setups(base: u64, most: u32) -> Vec<Setup> {
    let good = Rings::at(base, most);
    let refused = |rings| Setup { rings, refused: true };
    let either = |rings| Setup { rings, refused: false };
    let mut setups = Vec::new();
    for size in [0, 3, most - 1, most + 1, 2 * most, 0x8000, 0x8001, 0xffff, 0x1_0000, 0x1_0001, u32::MAX] {
        setups.push(Setup { rings: Rings { size, ..good }, refused: !size.is_power_of_two() || size > most });
    }
    let outside = [END, END - 16, 0xc000_0000, layout::IOAPIC, layout::LOCAL_APIC, 1 << 32, 1 << 40, 1 << 63];
    let windows = (0..devices::all().len() as u64).map(|index| Window::of(index).0);
    let wrapping = [u64::MAX - 15, u64::MAX - 1023, !0xfff];
    for address in outside.into_iter().chain(windows).chain(wrapping) {
        // The last 16 bytes of memory have room for the parts of a small ring.
        let must = !(address == END - 16 && most <= 4);
        for rings in [
            Rings { descriptors: address & !15, ..good },
            Rings { available: address & !1, ..good },
            Rings { used: address & !3, ..good },
        ] {
            setups.push(Setup { rings, refused: must });
        }
    }
    for off in [1, 2, 3, 4, 8, 15] {
        setups.push(refused(Rings { descriptors: good.descriptors + off, ..good }));
    }
    setups.push(refused(Rings { available: good.available + 1, ..good }));
    setups.extend([1, 2, 3].map(|off| refused(Rings { used: good.used + off, ..good })));
    // All parts at one address, or one part on another: each contains what the others write.
    setups.push(either(Rings { available: base, used: base, ..good }));
    setups.push(either(Rings { used: good.available, ..good }));
    setups.push(either(Rings { available: good.descriptors, ..good }));
    setups.push(either(Rings { used: good.descriptors + 4, ..good }));
    setups.push(either(Rings { available: good.used + 2, ..good }));
    setups
}

fn try_out(image: &mut Image, device: &Device, queue: u32, setup: &Setup, features: u64) {
    let window = Window::of(device.index);
    window.negotiate(&mut image.script, VERSION_1 | features);
    window.set_up_queue(&mut image.script, queue, &setup.rings);
    window.go_live(&mut image.script);
    if setup.refused {
        window.wait_for_stop(&mut image.script);
    }
    // The content of this memory is now the available ring.
    for queue in 0..4 {
        window.notify(&mut image.script, queue);
    }
    // The registers of a queue ignore new values while the device is live or has stopped.
    window.set_up_queue(&mut image.script, queue, &Rings::at(layout::FREE, 2));
    window.notify(&mut image.script, queue);
}

#[test]
fn invalid_queues_are_refused() {
    let Some(artefacts) = artefacts() else { return };
    for device in devices::all() {
        let mut image = Image::new();
        let base = layout::FREE + 0x10_0000;
        let mut place = layout::FREE + 0x20_0000;
        let mut count = 0;
        for (queue, most) in (0..).zip(device.queues) {
            for setup in setups(base, *most) {
                for features in [0, if device.event_idx { EVENT_IDX } else { 0 }] {
                    try_out(&mut image, device, queue, &setup, features);
                    count += 1;
                }
            }
            for served in device.served {
                works_again(&mut image, device, served, place);
                place += 0x1_0000;
            }
        }
        image.script.end();
        let ending = BareMachine::boot(&artefacts, &image, Shape::default()).finish();
        eprintln!("{}: {count} queues: {:?}", device.name, ending.reason);
        ending.assert_script_completed();
    }
}

/// Every order of writes to Status except the right one, and features that were not offered.
#[test]
fn a_device_is_live_only_after_its_driver_is_set_up() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut place = layout::FREE;
    for device in devices::all() {
        let window = Window::of(device.index);
        let status = window.0 + register::STATUS;
        for value in (0..=0xff).chain([0x100, 0xffff, 0x8000_0000, u32::MAX]) {
            image.script.set(status, 0).set(status, value);
            for queue in 0..3 {
                window.notify(&mut image.script, queue);
            }
            image.script.set(status, 1).set(status, 3).set(status, value);
            window.notify(&mut image.script, 0);
        }
        for features in [0, u64::MAX, VERSION_1 | 1 << 28, VERSION_1 | 1 << 34, VERSION_1 | 1 << 63] {
            image.script.set(status, 0).set(status, 1).set(status, 3);
            for (half, value) in [(0, features as u32), (1, (features >> 32) as u32), (2, u32::MAX)] {
                image.script.set(window.0 + register::DRIVER_FEATURES_SEL, half);
                image.script.set(window.0 + register::DRIVER_FEATURES, value);
            }
            // FEATURES_OK stays clear, and DRIVER_OK has no effect.
            image.script.set(status, 11).wait(status, u32::MAX, 3);
            image.script.set(status, 15).wait(status, u32::MAX, 3);
        }
        // A device that is live without a queue has nothing to serve and no reason to stop.
        window.negotiate(&mut image.script, VERSION_1);
        window.go_live(&mut image.script);
        for queue in 0..4 {
            window.notify(&mut image.script, queue);
        }
        image.script.wait(status, NEEDS_RESET, 0);
        for served in device.served {
            works_again(&mut image, device, served, place);
            place += 0x1_0000;
        }
    }
    image.script.end();
    BareMachine::boot(&artefacts, &image, Shape::default()).finish().assert_script_completed();
}
