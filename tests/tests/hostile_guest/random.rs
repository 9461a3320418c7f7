//! All attacks at random: nearly valid register writes and rings, memory that changes in between,
//! and hosts that connect and disconnect. Whatever the guest did, every device works for a good
//! driver afterwards.

use crate::{
    artefacts,
    devices::{self, Device},
    rings::works_again,
    second_vcpu,
};
use sandboxvm_bare_guest::{Image, Instruction, Width, layout};
use sandboxvm_tests::bare::{
    BareMachine, Bounds, Shape,
    driver::{Descriptor, Rings, VERSION_1, Window, register},
    socket_driver::{GUEST, HOST, Packet},
};
use std::{
    env,
    io::Write,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Memory to which all random addresses point: rings, buffers and packets, which may overlap.
const ARENA: u64 = layout::FREE;
const ARENA_SIZE: u64 = 0x2_0000;

/// A driver that acts at random.
struct Chaos<'r> {
    random: &'r mut fastrand::Rng,
    image: Image,
}

impl Chaos<'_> {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.usize(..from.len())]
    }

    /// Returns an address that is often valid.
    fn address(&mut self) -> u64 {
        match self.random.u8(..20) {
            0 => self.pick(&[
                64 << 20,
                (64 << 20) - 8,
                0xd000_0000,
                layout::LOCAL_APIC,
                u64::MAX,
                u64::MAX - 15,
                1 << 40,
            ]),
            1 => self.random.u64(..),
            _ => ARENA + self.random.u64(..ARENA_SIZE / 16) * 16,
        }
    }

    fn length(&mut self) -> u32 {
        match self.random.u8(..10) {
            0 => self.pick(&[0, u32::MAX, 64 << 20, 1 << 31]),
            1 => self.random.u32(..),
            _ => self.pick(&[1, 16, 44, 64, 512, 4096, 4140, 65536]),
        }
    }

    fn descriptor(&mut self, most: u16) -> Descriptor {
        let flags = if self.random.u8(..10) == 0 { self.random.u16(..) } else { self.random.u16(..4) };
        let next = if self.random.u8(..10) == 0 { self.random.u16(..) } else { self.random.u16(..most) };
        Descriptor { address: self.address(), length: self.length(), flags, next }
    }

    fn packet(&mut self) -> Packet {
        let mut packet = Packet::new(self.random.u32(..3), self.random.u16(..9));
        packet.destination_port = (1 << 30) + self.random.u32(..4);
        packet.length = self.length();
        packet.flags = self.random.u32(..4);
        packet.buffer_size = self.length();
        packet.forwarded = self.random.u32(..100);
        packet.source_cid = self.pick(&[GUEST, GUEST, GUEST, HOST, u64::MAX]);
        packet
    }

    /// Sets a device up, nearly correctly.
    fn set_up(&mut self, device: &Device) -> Vec<Rings> {
        let window = Window::of(device.index);
        let mut all = Vec::new();
        let script = &mut self.image.script;
        let status = window.0 + register::STATUS;
        script.set(status, 0).set(status, 1).set(status, 3);
        let features = VERSION_1 | u64::from(self.random.bool()) << 29;
        for (half, value) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            script.set(window.0 + register::DRIVER_FEATURES_SEL, half);
            script.write(Width::Word, window.0 + register::DRIVER_FEATURES, value);
        }
        script.set(status, 11);
        for (queue, most) in (0..).zip(device.queues) {
            let size =
                if self.random.u8(..20) == 0 { self.random.u32(..200) } else { (*most).min(1 << self.random.u8(..7)) };
            let rings = if self.random.u8(..8) == 0 {
                let (descriptors, available, used) = (self.address(), self.address(), self.address());
                Rings { size, descriptors, available, used }
            } else {
                Rings::at(ARENA + self.random.u64(..ARENA_SIZE / 0x1000) * 0x1000, size)
            };
            window.set_up_queue(&mut self.image.script, queue, &rings);
            all.push(rings);
        }
        self.image.script.set(status, 15);
        all
    }

    fn step(&mut self, device: &Device, queues: &[Rings]) {
        let window = Window::of(device.index);
        let queue = self.random.usize(..queues.len());
        let rings = queues[queue];
        // Writes only to guest memory or a device. Other modules test other addresses.
        let in_arena = |address: u64| (ARENA..ARENA + ARENA_SIZE + 0x3000).contains(&address);
        match self.random.u8(..12) {
            0..4 => {
                let bytes = self.descriptor(8).encode();
                let at = rings.descriptors.wrapping_add(16 * self.random.u64(..8));
                if in_arena(at) {
                    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                    self.image.script.write(Width::Double, at, word(&bytes[..8]));
                    self.image.script.write(Width::Double, at + 8, word(&bytes[8..]));
                }
            }
            4..6 if in_arena(rings.available) => {
                let slot = self.random.u64(..8);
                let head = if self.random.u8(..10) == 0 { self.random.u16(..) } else { self.random.u16(..8) };
                self.image.script.write(Width::Half, rings.available + 4 + 2 * slot, head.into());
                self.image.script.push(Instruction::Add { address: rings.available + 2, value: 1 });
            }
            6 => {
                let (at, packet) = (ARENA + self.random.u64(..ARENA_SIZE / 64) * 64, self.packet());
                for (offset, bytes) in (0..).step_by(4).zip(packet.encode().chunks_exact(4)) {
                    let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    self.image.script.set(at + offset, value);
                }
            }
            7 => {
                let (offset, width) = (self.random.u64(..0x160), self.pick(&Width::ALL));
                let value = self.random.u64(..);
                self.image.script.write(width, window.0 + offset, value);
            }
            8 => {
                // A request for a disk, if the device interprets it as one.
                let at = ARENA + self.random.u64(..ARENA_SIZE / 16) * 16;
                let kind = self.pick(&[0, 1, 4, 8, 11, 13, 99]);
                let sector = if self.random.bool() { self.random.u64(..20_000) } else { self.random.u64(..) };
                self.image.script.write(Width::Double, at, kind).write(Width::Double, at + 8, sector);
            }
            _ => window.notify(&mut self.image.script, u32::try_from(queue).expect("a few queues")),
        }
    }
}

/// Runs one machine with random attacks.
fn round(random: &mut fastrand::Rng) {
    let artefacts = artefacts().expect("the test checked for artefacts before");
    let mut chaos = Chaos { random, image: Image::new() };
    let filling: Vec<u8> =
        (0..ARENA_SIZE).map(|_| if chaos.random.u8(..4) == 0 { chaos.random.u8(..) } else { 0 }).collect();
    chaos.image.put(ARENA, &filling);
    for _ in 0..20 {
        let device = chaos.pick(devices::all());
        let queues = chaos.set_up(&device);
        for _ in 0..chaos.random.u32(1..80) {
            chaos.step(&device, &queues);
        }
    }
    let hosts = chaos.random.u32(..6);
    let mut image = chaos.image;
    let mut place = layout::FREE + 0x10_0000;
    for device in devices::all() {
        for served in device.served {
            works_again(&mut image, device, served, place);
            place += 0x1_0000;
        }
    }
    image.script.end();
    let bounds = Bounds { private_kib: 16 << 10, descriptors: 96 };
    let machine = BareMachine::boot(&artefacts, &image, Shape { bounds, ..Shape::default() });
    let clients: Vec<UnixStream> = (0..hosts)
        .filter_map(|host| {
            // The machine may have ended by now.
            let mut client = machine.try_client().ok()?;
            // Some clients send nothing, and some disconnect immediately.
            let _ = client.write_all(format!("CONNECT {host}\nand more").as_bytes());
            Some(client)
        })
        .collect();
    machine.finish().assert_script_completed();
    drop(clients);
}

#[test]
fn a_random_guest_leaves_every_device_working() {
    if artefacts().is_none() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(crate::seed());
    for _ in 0..25 {
        round(&mut random);
    }
}

/// Runs for as many minutes as `SANDBOXVM_HOSTILE_MINUTES` says (default: 10). Each round has a
/// different seed.
#[test]
#[ignore = "soak: runs for SANDBOXVM_HOSTILE_MINUTES"]
fn random_guests_leave_every_device_working_for_many_rounds() {
    if artefacts().is_none() {
        return;
    }
    let minutes = env::var("SANDBOXVM_HOSTILE_MINUTES").map_or(10, |text| text.parse().expect("a number of minutes"));
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let first = crate::seed();
    let mut rounds: u64 = 0;
    while Instant::now() < end {
        let seed = first.wrapping_add(rounds);
        // If a round fails, its seed is the last one printed.
        eprintln!("round {rounds}, SANDBOXVM_HOSTILE_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        round(&mut random);
        let device = devices::all()[random.usize(..devices::all().len())];
        for served in device.served {
            second_vcpu::race(&mut random, &device, served, 50);
        }
        rounds += 1;
    }
    eprintln!("{rounds} rounds in {minutes} minutes");
}
