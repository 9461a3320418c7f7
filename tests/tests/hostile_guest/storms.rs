//! Floods of notifications, interrupts, resets, console output and requests of the maximum size.
//! The VMM's event loop keeps responding, and becomes idle when the guest does.

use crate::{
    artefacts,
    devices::{self, DISK, ENTROPY, IMAGE},
    rings::works_again,
};
use sandboxvm_bare_guest::{Image, Instruction, Width, layout};
use sandboxvm_protocol::vmm::{ControlRequest, ExitReason};
use sandboxvm_tests::bare::{
    BareMachine, Bounds, Shape,
    driver::{FIRST_LINE, Part, Rings, VERSION_1, Window, register, route_interrupt},
};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Boots the image. Asserts that the VMM responds all the time and becomes idle afterwards.
fn assert_vmm_responds(image: &mut Image, shape: Shape) -> String {
    let artefacts = artefacts().expect("the test checked for artefacts before");
    image.script.say("#over\n");
    let mut machine = BareMachine::boot(&artefacts, image, shape);
    let (mut answers, mut slowest) = (0, Duration::ZERO);
    while !machine.console().contains("#over\n") {
        let asked = Instant::now();
        assert!(machine.stats().is_some(), "the machine ended\n{}", machine.said());
        slowest = slowest.max(asked.elapsed());
        answers += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    // The times are only printed. The test asserts that each request had a response.
    eprintln!("{answers} answers, the slowest after {slowest:?}");
    assert!(answers > 0);
    machine.assert_at_rest();
    let console = machine.console();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
    console
}

/// Asserts that every queue of a device works again, each in a separate 64 KiB of memory from
/// `place` on.
fn all_work_again(image: &mut Image, device: &devices::Device, place: &mut u64) {
    for served in device.served {
        works_again(image, device, served, *place);
        *place += 0x1_0000;
    }
}

#[test]
fn floods_of_notifications_leave_the_vmm_responsive() {
    if artefacts().is_none() {
        return;
    }
    let mut image = Image::new();
    let mut place = layout::FREE;
    for device in devices::all() {
        let window = Window::of(device.index);
        // To a device that is not set up, to a live one, and to a stopped one.
        for round in 0..3 {
            if round > 0 {
                window.negotiate(&mut image.script, VERSION_1);
                for (queue, size) in (0..).zip(device.queues) {
                    window.set_up_queue(&mut image.script, queue, &Rings::at(place, *size));
                    place += Rings::BYTES;
                }
                window.go_live(&mut image.script);
            }
            if let (2, Some(served)) = (round, device.served.first()) {
                let rings = Rings::at(place - Rings::BYTES * (device.queues.len() as u64 - u64::from(served.queue)), 1);
                rings.publish(&mut image.script, u16::MAX);
                window.notify(&mut image.script, served.queue);
                window.wait_for_stop(&mut image.script);
            }
            image.script.repeat(700, |script| {
                for queue in [0, 1, 2, 3, u32::MAX] {
                    window.notify(script, queue);
                }
            });
        }
        all_work_again(&mut image, device, &mut place);
    }
    let _ = assert_vmm_responds(&mut image, Shape::default());
}

#[test]
fn floods_of_interrupts_leave_the_vmm_responsive() {
    if artefacts().is_none() {
        return;
    }
    let mut image = Image::new();
    let window = Window::of(IMAGE);
    let (rings, let_one_through) = (Rings::at(layout::FREE, 64), layout::FREE + 0x6000);
    image.put(let_one_through, &[0xfb, 0xf4, 0xfa, 0xc3]); // STI, HLT, CLI, RET
    let parts = (devices::all()[IMAGE as usize].served[0].good)(&mut image, layout::FREE + 0x8000);
    rings.put_chain(&mut image, 0, &parts);
    rings.put_heads(&mut image, &[0; 64]);
    route_interrupt(&mut image.script, FIRST_LINE);
    window.negotiate(&mut image.script, VERSION_1);
    window.set_up_queue(&mut image.script, 0, &rings);
    window.go_live(&mut image.script);
    // One interrupt per request, without end, and the guest never acknowledges the interrupt
    // status.
    image.script.repeat(1000, |script| {
        script.push(Instruction::Add { address: rings.available + 2, value: 1 });
        window.notify(script, 0);
        // Interrupts are enabled just long enough for one HLT.
        script.push(Instruction::Call { address: let_one_through, argument: 0 });
    });
    image.script.push(Instruction::Read { width: Width::Word, address: window.0 + register::INTERRUPT_STATUS });
    image.script.push(Instruction::Expect { value: 1, mask: 1 });
    rings.wait_used(&mut image.script, 1000);
    let _ = assert_vmm_responds(&mut image, Shape::default());
}

/// A reset while the device reads the whole disk: the requests are dropped, and the VMM waits for
/// none of them.
#[test]
fn resets_drop_requests_under_way() {
    if artefacts().is_none() {
        return;
    }
    let mut image = Image::new();
    let (rings, data) = (Rings::at(layout::FREE, 64), layout::FREE + 0x10_0000);
    for device in [IMAGE, DISK] {
        let window = Window::of(device);
        image.put(layout::FREE + 0x8000, &[0; 16]);
        // 21 requests of 64 KiB of a disk.
        for request in 0..21_u16 {
            let parts = [
                Part::Readable(layout::FREE + 0x8000, 16),
                Part::Writable(data + u64::from(request) * 0x1_0000, 0x1_0000),
                Part::Writable(layout::FREE + 0x9000, 1),
            ];
            rings.put_chain(&mut image, 3 * request, &parts);
        }
        rings.put_heads(&mut image, &(0..21).map(|request| 3 * request).collect::<Vec<_>>());
        image.script.repeat(300, |script| {
            script.set(rings.available, 0).set(rings.used, 0);
            window.negotiate(script, VERSION_1);
            window.set_up_queue(script, 0, &rings);
            window.go_live(script);
            rings.publish(script, 21);
            window.notify(script, 0);
            window.reset(script);
        });
        let device = devices::all()[device as usize];
        works_again(&mut image, &device, &device.served[0], layout::FREE + 0x80_0000 + device.index * 0x1_0000);
    }
    let _ = assert_vmm_responds(&mut image, Shape::default());
}

/// DISCARD and WRITE_ZEROES of the maximum size, as many as the queue has room for, on a disk that
/// is large enough.
#[test]
fn the_largest_disk_requests_leave_the_vmm_responsive() {
    if artefacts().is_none() {
        return;
    }
    const DISCARD: u32 = 11;
    const WRITE_ZEROES: u32 = 13;
    const RANGES: u64 = 16;
    const RANGE_SECTORS: u32 = 512 * 1024;
    let mut image = Image::new();
    let window = Window::of(DISK);
    let (rings, area) = (Rings::at(layout::FREE, 64), layout::FREE + 0x10_0000);
    for request in 0..21_u16 {
        let kind = if request % 2 == 0 { DISCARD } else { WRITE_ZEROES };
        let header = area + u64::from(request) * 0x1000;
        image.put(header, &kind.to_le_bytes());
        image.put(header + 0x800, &[0xff]);
        let sector = |range: u64| (range + u64::from(request)) % RANGES * u64::from(RANGE_SECTORS);
        let ranges = (0..RANGES).flat_map(|range| {
            [&sector(range).to_le_bytes()[..], &RANGE_SECTORS.to_le_bytes(), &0_u32.to_le_bytes()].concat()
        });
        image.put(header + 0x100, &ranges.collect::<Vec<_>>());
        let parts =
            [Part::Readable(header, 16), Part::Readable(header + 0x100, 256), Part::Writable(header + 0x800, 1)];
        rings.put_chain(&mut image, 3 * request, &parts);
    }
    rings.put_heads(&mut image, &(0..64).map(|slot| 3 * (slot % 21)).collect::<Vec<_>>());
    window.negotiate(&mut image.script, VERSION_1);
    window.set_up_queue(&mut image.script, 0, &rings);
    window.go_live(&mut image.script);
    for round in 1..=4 {
        rings.publish(&mut image.script, 64 * round);
        window.notify(&mut image.script, 0);
        rings.wait_used(&mut image.script, 64 * round);
    }
    for request in 0..21 {
        image.script.expect(Width::Byte, area + request * 0x1000 + 0x800, 0);
    }
    let device = devices::all()[DISK as usize];
    works_again(&mut image, &device, &device.served[0], layout::FREE + 0x80_0000);
    // The memory is the disk's table of blocks.
    let bounds = Bounds { private_kib: 64 << 10, ..Bounds::QUIET };
    let disk_bytes = RANGES * u64::from(RANGE_SECTORS) * 512;
    let _ = assert_vmm_responds(&mut image, Shape { disk_bytes, bounds, ..Shape::default() });
}

/// The guest requests more entropy than the device provides. The guest waits, and the VMM is idle
/// meanwhile.
#[test]
fn entropy_beyond_the_rate_makes_only_the_guest_wait() {
    if artefacts().is_none() {
        return;
    }
    let mut image = Image::new();
    let window = Window::of(ENTROPY);
    let rings = Rings::at(layout::FREE, 8);
    rings.put_chain(&mut image, 0, &[Part::Writable(layout::FREE + 0x8000, 4096)]);
    rings.put_heads(&mut image, &[0; 8]);
    window.negotiate(&mut image.script, VERSION_1);
    window.set_up_queue(&mut image.script, 0, &rings);
    window.go_live(&mut image.script);
    // The rate is 64 KiB per 50 ms, so this takes two thirds of a second, however fast the guest
    // requests it.
    for round in 1..=25 {
        rings.publish(&mut image.script, 8 * round);
        window.notify(&mut image.script, 0);
        image.script.repeat(50, |script| window.notify(script, 0));
        rings.wait_used(&mut image.script, 8 * round);
    }
    let _ = assert_vmm_responds(&mut image, Shape::default());
}

#[test]
fn floods_of_console_output_are_bounded() {
    if artefacts().is_none() {
        return;
    }
    let shape = Shape { console_limit: 8 << 10, ..Shape::default() };
    let mut image = Image::new();
    image.script.repeat(2500, |script| {
        script.say("<noise>\n");
    });
    let console = assert_vmm_responds(&mut image, shape);
    // The log keeps the newest output.
    assert!(console.len() <= 8 << 10 && console.ends_with("<noise>\n#over\n"), "{} bytes", console.len());
}

/// A device is set up and reset as fast as possible.
#[test]
fn rapid_resets_leave_the_vmm_responsive() {
    if artefacts().is_none() {
        return;
    }
    let mut image = Image::new();
    let mut place = layout::FREE;
    for device in devices::all() {
        let window = Window::of(device.index);
        image.script.repeat(300, |script| {
            window.negotiate(script, VERSION_1);
            for (queue, size) in (0..).zip(device.queues) {
                window.set_up_queue(script, queue, &Rings::at(place + u64::from(queue) * Rings::BYTES, *size));
            }
            window.go_live(script);
            window.notify(script, 0);
        });
        place += 0x1_0000;
        all_work_again(&mut image, device, &mut place);
    }
    let _ = assert_vmm_responds(&mut image, Shape::default());
}

/// The guest sends notifications without end. Nothing grows, not even the status file.
#[test]
fn floods_of_announcements_are_not_stored() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    image.script.repeat(5000, |script| {
        script.out(layout::NOTIFY, 2).out(layout::NOTIFY, 1).out(layout::NOTIFY, 0x77);
    });
    image.script.end();
    let machine = BareMachine::boot(&artefacts, &image, Shape::default());
    let status = machine.path("status.json");
    while fs::metadata(&status).is_ok_and(|status| status.len() == 0) {
        std::thread::yield_now();
    }
    assert!(fs::metadata(&status).unwrap().len() < 4096);
    machine.finish().assert_script_completed();
}

/// A queue that never becomes empty: each request reads the sector whose number is the used index,
/// and writes it to the available index. If the machine is paused, the device must stand still, and
/// continue after the resume.
#[test]
fn a_paused_machine_serves_no_queue() {
    /// The available index has 16 bits, so after this many sectors it is zero again.
    const SECTORS: u64 = 1 << 16;
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let (rings, kind, rest) = (Rings::at(layout::FREE, 8), layout::FREE + 0x4000, layout::FREE + 0x5000);
    image.put(kind, &[0; 16]); // a read, and the upper bytes of its sector's number
    rings.put_chain(
        &mut image,
        0,
        &[
            Part::Readable(kind, 8),
            Part::Readable(rings.used + 2, 2),
            Part::Readable(kind + 8, 6),
            Part::Writable(rings.available + 2, 2),
            Part::Writable(rest, 510),
            Part::Writable(rest + 510, 1),
        ],
    );
    rings.put_heads(&mut image, &[0; 8]);
    let disk = Window::of(DISK);
    disk.negotiate(&mut image.script, VERSION_1);
    disk.set_up_queue(&mut image.script, 0, &rings);
    disk.go_live(&mut image.script);
    rings.publish(&mut image.script, 1);
    disk.notify(&mut image.script, 0);
    image.script.say("#goes round");
    let shape = Shape { disk_bytes: 512 * SECTORS, disk_is_numbered: true, ..Shape::default() };
    let mut machine = BareMachine::boot(&artefacts, &image, shape);
    machine.wait_for_console("#goes round");
    machine.assert_loop_at_work();
    machine.order(&ControlRequest::Pause);
    machine.assert_at_rest();
    machine.order(&ControlRequest::Resume);
    machine.assert_loop_at_work();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}
