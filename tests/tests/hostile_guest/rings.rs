//! Virtqueues that break every rule, on every queue whose chains a device processes immediately.
//! One guest makes all attacks on a device, one after the other. After each it resets the device,
//! and a valid request must succeed.

use crate::{
    artefacts,
    devices::{self, Device, Served},
};
use sandboxvm_bare_guest::{Image, Script, layout};
use sandboxvm_tests::bare::{
    BareMachine, Shape,
    driver::{Descriptor, FIRST_WINDOW, INDIRECT, NEXT, Rings, VERSION_1, WRITE, Window},
};

/// Size of the guest's memory, and so the first address behind it.
const END: u64 = 64 << 20;
/// Memory of one attack: its rings, the rings of the valid request after it, and a page of buffers
/// for each.
const STRIDE: u64 = 2 * Rings::BYTES + 2 * 0x1000;

/// A ring that violates a rule.
struct Attack {
    name: String,
    descriptors: Vec<(u16, Descriptor)>,
    /// The content of the available ring, and the index that publishes it.
    heads: Vec<u16>,
    index: u16,
    /// Whether the device must stop. Otherwise it may also respond.
    stops: bool,
}

impl Attack {
    fn new(name: impl Into<String>, descriptors: &[(u16, Descriptor)]) -> Self {
        let head = descriptors.first().map_or(0, |(index, _)| *index);
        Self { name: name.into(), descriptors: descriptors.to_vec(), heads: vec![head], index: 1, stops: true }
    }
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, length, flags, next }
}

/// Returns buffers at forbidden places: address and length.
fn wild_buffers() -> Vec<(u64, u32)> {
    let mut buffers = vec![
        (END, 1),
        (END - 1, 2),
        (END - 16, 32),
        (0, u32::MAX),
        (0, (END as u32) + 1),
        (1 << 40, 16),
        (1 << 63, 0x8000_0000),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 15, 16),
        (u64::MAX - 14, 16),
        (layout::LOCAL_APIC, 16),
        (layout::IOAPIC, 16),
        (0xc000_0000, 16),
        (0xffff_ffff, 2),
    ];
    // The windows of the devices.
    buffers.extend((0..devices::all().len() as u64).map(|index| (Window::of(index).0, 0x100)));
    buffers.push((FIRST_WINDOW - 16, 32));
    buffers
}

/// Returns all attacks on a queue, with buffers in the page at `page`.
fn attacks(served: &Served, page: u64) -> Vec<Attack> {
    let size = u16::try_from(served.size).expect("a queue has at most 32768 descriptors");
    let way = if served.readable { 0 } else { WRITE };
    let good = |next: u16| descriptor(page, 16, way | NEXT, next);
    let last = descriptor(page, 16, way, 0);
    let mut attacks = vec![
        Attack::new("a descriptor that is its own next", &[(0, good(0))]),
        Attack::new("two descriptors that are each other's next", &[(1, good(2)), (2, good(1))]),
        Attack::new(
            "the wrong direction",
            &[(0, descriptor(page, 16, WRITE | NEXT, 1)), (1, descriptor(page, 16, 0, 0))],
        ),
        Attack::new("no length", &[(0, descriptor(page, 0, way, 0))]),
        Attack::new("no length and an invalid address", &[(0, descriptor(u64::MAX, 0, way, 0))]),
        Attack::new("no length behind a valid descriptor", &[(0, good(1)), (1, descriptor(page, 0, way, 0))]),
    ];
    let ring: Vec<_> = (0..size).map(|index| (index, good((index + 1) % size))).collect();
    attacks.push(Attack::new("all descriptors in a circle", &ring));
    let spiral: Vec<_> = (0..size).map(|index| (index, good(if index + 1 == size { 1 } else { index + 1 }))).collect();
    attacks.push(Attack::new("all descriptors, back to the second", &spiral));
    for index in [size, size + 1, 0x8000, u16::MAX] {
        attacks.push(Attack::new(format!("next {index}"), &[(0, good(index))]));
        attacks.push(Attack { heads: vec![index], ..Attack::new(format!("head {index}"), &[(0, last)]) });
    }
    for (address, length) in wild_buffers() {
        for flags in [0, WRITE] {
            let name = format!("{length:#x} bytes at {address:#x}, flags {flags}");
            attacks.push(Attack::new(name.clone(), &[(0, descriptor(address, length, flags, 0))]));
            let behind = [(0, good(1)), (1, descriptor(address, length, flags | way, 0))];
            attacks.push(Attack::new(name + ", behind a valid descriptor", &behind));
        }
    }
    for flags in [INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, u16::MAX] {
        attacks.push(Attack::new(format!("indirect {flags:#x}"), &[(0, descriptor(page, 64, flags, 1)), (1, last)]));
        attacks.push(Attack::new(
            format!("indirect {flags:#x}, second"),
            &[(0, good(1)), (1, descriptor(page, 64, flags, 2))],
        ));
    }
    for jump in [size + 1, size + 2, 1000, 0x7fff, 0x8000, u16::MAX] {
        attacks.push(Attack { index: jump, ..Attack::new(format!("available index {jump}"), &[(0, last)]) });
    }
    // Very large requests in one chain: the device refuses or serves them, but not for long.
    let first = if served.gives_away { END / 2 } else { 0 };
    let all = descriptor(first, (END - first) as u32, WRITE | NEXT, 0);
    let huge: Vec<_> = (0..size).map(|index| (index, Descriptor { next: index + 1, ..all })).collect();
    attacks.push(Attack { stops: false, ..Attack::new("all of memory in each descriptor", &huge) });
    let mut ended = huge.clone();
    if let Some((_, last)) = ended.last_mut() {
        last.flags = WRITE;
    }
    attacks
        .push(Attack { stops: false, ..Attack::new("all of memory in each descriptor, and the chain ends", &ended) });
    let same: Vec<u16> = vec![0; usize::from(size)];
    attacks.push(Attack {
        heads: same,
        index: size,
        stops: false,
        ..Attack::new("one chain in every slot", &[(0, last)])
    });
    attacks
}

/// Makes `device` stop on `attack`, and then work again.
fn attack(image: &mut Image, device: &Device, served: &Served, attack: &Attack, base: u64) {
    let window = Window::of(device.index);
    let rings = Rings::at(base, served.size);
    for (index, descriptor) in &attack.descriptors {
        rings.put(image, *index, *descriptor);
    }
    rings.put_heads(image, &attack.heads);
    bring_up(&mut image.script, window, served.queue, &rings);
    rings.publish(&mut image.script, attack.index);
    window.notify(&mut image.script, served.queue);
    if attack.stops {
        window.wait_for_stop(&mut image.script);
        rings.expect_used(&mut image.script, 0);
        // A stopped device ignores notifications.
        window.notify(&mut image.script, served.queue);
    }
    works_again(image, device, served, base + Rings::BYTES);
}

fn bring_up(script: &mut Script, window: Window, queue: u32, rings: &Rings) {
    window.negotiate(script, VERSION_1);
    window.set_up_queue(script, queue, rings);
    window.go_live(script);
    window.expect_live(script);
}

/// Resets the device and expects a valid request to succeed, with memory from `base` on.
pub fn works_again(image: &mut Image, device: &Device, served: &Served, base: u64) {
    let window = Window::of(device.index);
    let rings = Rings::at(base, served.size);
    let parts = (served.good)(image, base + Rings::BYTES);
    rings.put_chain(image, 0, &parts);
    rings.put_heads(image, &[0]);
    bring_up(&mut image.script, window, served.queue, &rings);
    rings.publish(&mut image.script, 1);
    window.notify(&mut image.script, served.queue);
    rings.wait_used(&mut image.script, 1);
    window.reset(&mut image.script);
}

#[test]
fn broken_rings_stop_their_device_and_nothing_else() {
    let Some(artefacts) = artefacts() else { return };
    for device in devices::all() {
        for served in device.served {
            let mut image = Image::new();
            let mut names = Vec::new();
            let page = layout::FREE;
            for (base, broken) in (layout::FREE + 0x1000..).step_by(STRIDE as usize).zip(attacks(served, page)) {
                // The position in the script at which each attack begins, to find one that failed.
                names.push(format!("{} from {}", broken.name, image.script.instructions().len()));
                attack(&mut image, device, served, &broken, base);
            }
            image.script.end();
            let machine = BareMachine::boot(&artefacts, &image, Shape::default());
            let ending = machine.finish();
            eprintln!("{}: {} attacks: {:?}", device.name, names.len(), ending.reason);
            if ending.console.contains('!') {
                panic!("{}: {}: see which instruction among {names:#?}", device.name, ending.console);
            }
            ending.assert_script_completed();
        }
    }
}

#[test]
fn an_available_index_that_runs_backwards_stops_the_device() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut base = layout::FREE;
    for device in devices::all() {
        for served in device.served {
            let window = Window::of(device.index);
            let rings = Rings::at(base, served.size);
            let parts = (served.good)(&mut image, base + Rings::BYTES);
            rings.put_chain(&mut image, 0, &parts);
            rings.put_heads(&mut image, &[0]);
            bring_up(&mut image.script, window, served.queue, &rings);
            rings.publish(&mut image.script, 1);
            window.notify(&mut image.script, served.queue);
            rings.wait_used(&mut image.script, 1);
            rings.publish(&mut image.script, 0);
            window.notify(&mut image.script, served.queue);
            window.wait_for_stop(&mut image.script);
            works_again(&mut image, device, served, base + 0x8000);
            base += 0x1_0000;
        }
    }
    image.script.say("done");
    let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
    machine.wait_for_console("done");
    machine.assert_at_rest();
    machine.assert_within_bounds();
    let _ = machine.stop().typed();
}
