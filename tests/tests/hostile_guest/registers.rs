//! Accesses of every width, at every offset of every device's window, and at the ports. A device
//! responds or ignores the access. An access to which no device responds ends the machine, and the
//! reason names it exactly.

use crate::{
    artefacts,
    devices::{self, SOCKET},
    rings::works_again,
};
use sandboxvm_bare_guest::{Image, Instruction, Script, Width, layout};
use sandboxvm_protocol::vmm::ExitReason;
use sandboxvm_tests::{
    artefacts::Artefacts,
    bare::{
        BareMachine, Shape,
        driver::{FIRST_WINDOW, WINDOW_SIZE, Window, register},
    },
};

/// The values that are written: no bit, all bits, and a value with different bytes.
const VALUES: [u64; 3] = [0, u64::MAX, 0x0102_0304_0506_0708];

fn touch(script: &mut Script, width: Width, address: u64, value: u64) {
    script.write(width, address, value).push(Instruction::Read { width, address });
}

#[test]
fn every_register_survives_every_access() {
    let Some(artefacts) = artefacts() else { return };
    for device in devices::all() {
        let window = Window::of(device.index);
        let mut image = Image::new();
        for value in VALUES {
            for width in Width::ALL {
                for offset in 0..register::CONFIG + 0x60 {
                    touch(&mut image.script, width, window.0 + offset, value);
                }
                // The rest of the window is configuration space that does not exist.
                for offset in (register::CONFIG + 0x60..WINDOW_SIZE - width.bytes()).step_by(127) {
                    touch(&mut image.script, width, window.0 + offset, value);
                }
                touch(&mut image.script, width, window.0 + WINDOW_SIZE - width.bytes(), value);
            }
        }
        for (served, place) in device.served.iter().zip((layout::FREE..).step_by(0x1_0000)) {
            works_again(&mut image, device, served, place);
        }
        image.script.end();
        BareMachine::boot(&artefacts, &image, Shape::default()).finish().assert_script_completed();
    }
}

#[test]
fn an_access_across_two_windows_reaches_neither_device() {
    let Some(artefacts) = artefacts() else { return };
    for width in [Width::Half, Width::Word, Width::Double] {
        let mut image = Image::new();
        for device in 1..devices::all().len() as u64 {
            for back in 1..width.bytes() {
                touch(&mut image.script, width, Window::of(device).0 - back, u64::MAX);
            }
        }
        image.script.end();
        let ending = BareMachine::boot(&artefacts, &image, Shape::default()).finish();
        // KVM passes the access to the VMM in two pieces, or as one that has no device.
        let reason = ending.typed();
        assert!(matches!(reason, ExitReason::GuestShutdown | ExitReason::UnknownMmio { .. }), "{reason:?}");
    }
}

fn ends_with(artefacts: &Artefacts, write: impl FnOnce(&mut Image), reason: &ExitReason) {
    let mut image = Image::new();
    write(&mut image);
    image.script.say("continued").end();
    let ending = BareMachine::boot(artefacts, &image, Shape::default()).finish();
    assert_eq!(ending.typed(), reason, "{ending:#?}");
}

#[test]
fn an_access_without_a_device_ends_the_machine_with_its_address() {
    let Some(artefacts) = artefacts() else { return };
    let after_last = FIRST_WINDOW + devices::all().len() as u64 * WINDOW_SIZE;
    let addresses = [64 << 20, 0xbfff_f000, 0xc000_0000, FIRST_WINDOW - 8, after_last, 0xfed0_0000, 0xffff_fff8];
    for (address, width) in addresses.into_iter().zip(Width::ALL.into_iter().cycle()) {
        let size = u8::try_from(width.bytes()).unwrap();
        let write = |image: &mut Image| {
            image.script.write(width, address, 1);
        };
        ends_with(&artefacts, write, &ExitReason::UnknownMmio { address, write: true, size });
        let read = |image: &mut Image| {
            image.script.push(Instruction::Read { width, address });
        };
        ends_with(&artefacts, read, &ExitReason::UnknownMmio { address, write: false, size });
    }
}

/// Returns whether the VMM or KVM responds at a port: at real devices, in every width or in single
/// bytes, and where a kernel probes for hardware. This repeats the VMM's own table.
fn is_answered(port: u16, width: Width, write: bool) -> bool {
    let byte = width == Width::Byte;
    match port {
        0x3f8..=0x3ff => byte,
        0x60 | 0x64 => true,
        0x510 => byte && write,
        0x518..=0x51f => byte && !write,
        // KVM itself serves the PICs and their trigger modes.
        0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => byte,
        0x40..=0x43 | 0x61 | 0x70 | 0x71 | 0x80 | 0xed => true,
        0x2e8..=0x2ef | 0x2f8..=0x2ff | 0x3e8..=0x3ef | 0xcf8..=0xcff => true,
        _ => false,
    }
}

/// Returns whether an access ends the machine for another reason.
fn is_eventful(port: u16, value: u32) -> bool {
    port == layout::I8042 && value & 0xff == u32::from(layout::I8042_RESET)
}

#[test]
fn every_known_port_survives_every_width() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut count = 0;
    for port in 0..=u16::MAX {
        for width in Width::PORT {
            for value in [0, 0xff, 0x5a5a_5a5a] {
                if is_answered(port, width, true) && !is_eventful(port, value) && port != layout::NOTIFY {
                    image.script.push(Instruction::Out { width, port, value });
                    count += 1;
                }
            }
            if is_answered(port, width, false) {
                image.script.push(Instruction::In { width, port });
                count += 1;
            }
        }
    }
    // All notifications except those by which the guest ends its machine.
    let ends = [layout::NOTIFY_PANIC, layout::NOTIFY_SHUTDOWN, layout::NOTIFY_POWER_OFF, layout::NOTIFY_HALT];
    for code in (0..=0xff_u8).filter(|code| !ends.contains(code)) {
        image.script.out(layout::NOTIFY, code);
    }
    image.script.end();
    BareMachine::boot(&artefacts, &image, Shape::default()).finish().assert_script_completed();
    assert!(count > 300, "{count}");
}

/// Asserts that an access to a port without a device ends the machine, and that the reason names
/// port and width.
pub fn unknown_port(artefacts: &Artefacts, port: u16, width: Width, write: bool) {
    let size = u8::try_from(width.bytes()).expect("at most four bytes");
    let access = |image: &mut Image| {
        image.script.push(if write {
            Instruction::Out { width, port, value: u32::MAX }
        } else {
            Instruction::In { width, port }
        });
    };
    ends_with(artefacts, access, &ExitReason::UnknownPort { port, write, size });
}

#[test]
fn unknown_ports_end_the_machine() {
    let Some(artefacts) = artefacts() else { return };
    let mut random = fastrand::Rng::with_seed(crate::seed());
    let edges = [
        (0x3f7, Width::Byte),
        (0x400, Width::Byte),
        (0x511, Width::Byte),
        (0x520, Width::Byte),
        (u16::MAX, Width::Byte),
    ];
    let narrow =
        [(0x3f8, Width::Half), (0x3fa, Width::Word), (0x510, Width::Word), (0x518, Width::Half), (0x51f, Width::Word)];
    let chance = (0..10).map(|_| (random.u16(..), Width::PORT[random.usize(..3)]));
    for (port, width) in edges.into_iter().chain(narrow).chain(chance.collect::<Vec<_>>()) {
        for write in [false, true] {
            // KVM splits an access that overlaps one of its own ports.
            let near_own =
                (0..4).any(|next| matches!(port.saturating_add(next), 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1));
            if !is_answered(port, width, write) && !near_own {
                unknown_port(&artefacts, port, width, write);
            }
        }
    }
}

/// REP OUTSB and REP INSB transfer many bytes in one exit, which no device of the VMM supports.
#[test]
fn string_accesses_to_ports_end_the_machine_or_are_served() {
    let Some(artefacts) = artefacts() else { return };
    for port in [layout::UART, layout::NOTIFY, layout::I8042, 0x80, 0x1234] {
        for count in [1, 2, 256, 5000] {
            for write in [false, true] {
                let mut image = Image::new();
                let address = layout::FREE + 0xff0;
                image.script.push(if write {
                    Instruction::OutString { port, address, count }
                } else {
                    Instruction::InString { port, address, count }
                });
                image.script.end();
                let ending = BareMachine::boot(&artefacts, &image, Shape::default()).finish();
                let reason = ending.typed();
                let as_it_should = match reason {
                    ExitReason::GuestShutdown => true,
                    ExitReason::UnknownPort { port: named, write: wrote, .. } => *named == port && *wrote == write,
                    _ => false,
                };
                assert!(as_it_should, "{count} bytes at {port:#x}: {reason:?}");
            }
        }
    }
}

/// Register writes while the device is live change only what the driver may change then.
#[test]
fn registers_of_a_live_device_ignore_forbidden_writes() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let device = devices::all()[SOCKET as usize];
    let window = Window::of(SOCKET);
    window.negotiate(&mut image.script, sandboxvm_tests::bare::driver::VERSION_1);
    window.go_live(&mut image.script);
    for offset in (0..register::CONFIG + 0x20).filter(|offset| *offset != register::STATUS) {
        for width in Width::ALL {
            // An access that covers Status but is not 32 bits at its address is ignored.
            touch(&mut image.script, width, window.0 + offset, 0);
            touch(&mut image.script, width, window.0 + offset, u64::MAX);
        }
    }
    window.expect_live(&mut image.script);
    for (served, place) in device.served.iter().zip((layout::FREE..).step_by(0x1_0000)) {
        works_again(&mut image, &device, served, place);
    }
    image.script.end();
    BareMachine::boot(&artefacts, &image, Shape::default()).finish().assert_script_completed();
}
