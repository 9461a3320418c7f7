//! Rings that change while the device reads them. One vCPU drives a device correctly, and the other
//! rewrites descriptors, rings and buffers all the time. A device uses the values of its first
//! reading. Whatever it read, it responds or stops, and never accesses anything outside of guest
//! memory.

use crate::{
    artefacts,
    devices::{self, Device, Served},
    rings::works_again,
};
use sandboxvm_bare_guest::{Image, Instruction, Script, Width, layout};
use sandboxvm_tests::bare::{
    BareMachine, Shape,
    driver::{Descriptor, INDIRECT, LIVE, NEXT, Part, Rings, VERSION_1, WRITE, Window, register},
};

/// The rings that both vCPUs write, and a page of buffers behind them.
const RINGS: u64 = layout::FREE;
const BUFFERS: u64 = layout::FREE + Rings::BYTES;
/// The second vCPU rewrites the rings while this is zero.
const STOP: u64 = layout::FREE + 0x8000;

/// What the second vCPU writes: valid and invalid descriptors, and indices and heads of all kinds.
fn scribbles(random: &mut fastrand::Rng, served: &Served, good: &[Part]) -> Vec<Instruction> {
    let rings = Rings::at(RINGS, served.size);
    let mut writes = Vec::new();
    let mut descriptor = |index: u64, descriptor: Descriptor| {
        let bytes = descriptor.encode();
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let at = rings.descriptors + 16 * index;
        writes.push(Instruction::Write { width: Width::Double, address: at, value: word(&bytes[..8]) });
        writes.push(Instruction::Write { width: Width::Double, address: at + 8, value: word(&bytes[8..]) });
    };
    for _ in 0..60 {
        let index = random.u64(..4);
        // Often restores the original value, so that the device also reads valid chains.
        let honest = good.get(usize::try_from(index).unwrap_or(0)).copied();
        if let (Some(part), true) = (honest, random.u8(..) < 200) {
            let more = if index as usize + 1 < good.len() { NEXT } else { 0 };
            let next = index as u16 + 1;
            descriptor(
                index,
                match part {
                    Part::Readable(address, length) => Descriptor { address, length, flags: more, next },
                    Part::Writable(address, length) => Descriptor { address, length, flags: more | WRITE, next },
                },
            );
        } else {
            let address = [BUFFERS, RINGS, RINGS + 0x1000, (64 << 20) - 8, 64 << 20, u64::MAX][random.usize(..6)];
            let length = [1, 16, 512, 4096, 0, u32::MAX][random.usize(..6)];
            let flags = [0, NEXT, WRITE, NEXT | WRITE, INDIRECT][random.usize(..5)];
            descriptor(index, Descriptor { address, length, flags, next: random.u16(..6) });
        }
    }
    for _ in 0..10 {
        let (address, value) = match random.u8(..4) {
            0 => (rings.available + 2, random.u64(..4)),
            1 => (rings.available + 4, u64::from(random.u16(..))),
            2 => (rings.used + 2, u64::from(random.u16(..))),
            _ => (BUFFERS, random.u64(..16)),
        };
        writes.push(Instruction::Write { width: Width::Half, address, value });
    }
    random.shuffle(&mut writes);
    writes
}

/// Drives a device repeatedly while the other vCPU writes to its ring.
fn drive(script: &mut Script, device: &Device, served: &Served, rounds: u64) {
    let window = Window::of(device.index);
    let rings = Rings::at(RINGS, served.size);
    script.repeat(rounds, |script| {
        script.set(rings.available, 0).set(rings.used, 0);
        window.negotiate(script, VERSION_1);
        window.set_up_queue(script, served.queue, &rings);
        script.set(window.0 + register::STATUS, LIVE);
        for index in 1..=6 {
            rings.publish(script, index);
            window.notify(script, served.queue);
        }
    });
}

/// Runs both vCPUs against one device for `rounds` rounds. Then the second one stops, and the
/// device must work.
pub fn race(random: &mut fastrand::Rng, device: &Device, served: &Served, rounds: u64) {
    let artefacts = artefacts().expect("the test checked for artefacts before");
    let mut image = Image::new();
    let rings = Rings::at(RINGS, served.size);
    let good = (served.good)(&mut image, BUFFERS);
    rings.put_chain(&mut image, 0, &good);
    rings.put_heads(&mut image, &[0; 4]);
    let writes = scribbles(random, served, &good);
    image.second.until(STOP, |script| {
        for write in writes {
            script.push(write);
        }
    });
    image.script.start_second_vcpu();
    drive(&mut image.script, device, served, rounds);
    Window::of(device.index).reset(&mut image.script);
    image.script.set(STOP, 1).push(Instruction::Delay { turns: 20_000 });
    works_again(&mut image, device, served, layout::FREE + 0x1_0000);
    image.script.end();
    let machine = BareMachine::boot(&artefacts, &image, Shape { vcpus: 2, ..Shape::default() });
    machine.finish().assert_script_completed();
}

#[test]
fn rings_that_change_while_the_device_reads_them_do_no_harm() {
    if artefacts().is_none() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(crate::seed());
    for device in devices::all() {
        for served in device.served {
            race(&mut random, device, served, 150);
        }
    }
}

/// Sets a device up without checking its registers, as the other vCPU may change them.
fn blind(script: &mut Script, window: Window, queue: u32, rings: &Rings) {
    let status = window.0 + register::STATUS;
    script.set(status, 0).set(status, 1).set(status, 3);
    script.set(window.0 + register::DRIVER_FEATURES_SEL, 1).set(window.0 + register::DRIVER_FEATURES, 1);
    script.set(status, 11);
    window.set_up_queue(script, queue, rings);
    script.set(status, LIVE);
    rings.publish(script, 1);
    window.notify(script, queue);
}

/// Both vCPUs write registers: one sets the device up, the other resets it, notifies it and sets it
/// up differently.
#[test]
fn two_drivers_of_one_device_do_no_harm() {
    let Some(artefacts) = artefacts() else { return };
    for device in devices::all() {
        let served = &device.served[0];
        let mut image = Image::new();
        let window = Window::of(device.index);
        let good = (served.good)(&mut image, BUFFERS);
        let rings = Rings::at(RINGS, served.size);
        rings.put_chain(&mut image, 0, &good);
        rings.put_heads(&mut image, &[0; 4]);
        let mut second = Script::new();
        second.repeat(300, |script| {
            blind(script, window, served.queue, &rings);
            window.notify(script, served.queue);
            window.reset(script);
        });
        second.set(STOP, 1);
        image.second = second;
        image.script.start_second_vcpu();
        image.script.repeat(300, |script| blind(script, window, served.queue, &rings));
        image.script.wait(STOP, u32::MAX, 1);
        works_again(&mut image, device, served, layout::FREE + 0x1_0000);
        image.script.end();
        let machine = BareMachine::boot(&artefacts, &image, Shape { vcpus: 2, ..Shape::default() });
        machine.finish().assert_script_completed();
    }
}
