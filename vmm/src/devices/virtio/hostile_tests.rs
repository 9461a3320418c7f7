//! Drivers that break the rules, against every device whose queues are read with [`super::chain`].
//!
//! What must come of it: an answered request or a stopped device, in bounded time, and a device that works again after
//! a reset. Never a panic, a spin or an access outside guest memory.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are this test's own, and small")]

use super::{
    balloon::BalloonDevice,
    block::BlockDevice,
    chain::{Chain, ChainError},
    device::VirtioDevice,
    mock_driver::{
        BUFFERS, HIGH_END, HIGH_START, LOW_END, MockDriver, NEXT, Part, Rings, WRITE, guest_memory, rings_of,
    },
    net::NetDevice,
    rng::RngDevice,
};
use crate::memory::{GuestMemory, pages::page_count, released::ReleasedPages};
use proptest::prelude::*;
use sandboxvm_protocol::{
    network::{MacAddress, Mtu},
    vmm::NetConfig,
};
use std::{
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use virtio_bindings::{
    virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_F_VERSION_1},
    virtio_mmio::{VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_STATUS},
    virtio_ring::VRING_DESC_F_INDIRECT,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

fn read_only_disk() -> Box<dyn VirtioDevice> {
    let image = tempfile::tempfile().unwrap();
    image.write_all_at(&[0x11; 1 << 16], 0).unwrap();
    Box::new(BlockDevice::read_only(image).unwrap())
}

fn slot() -> Box<dyn VirtioDevice> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[0x33; 1000], 0).unwrap();
    Box::new(BlockDevice::slot(file).unwrap())
}

fn writable_disk() -> Box<dyn VirtioDevice> {
    let template = tempfile::tempfile().unwrap();
    template.write_all_at(&[0x22; 1 << 16], 0).unwrap();
    Box::new(BlockDevice::writable(template, vec![tempfile::tempfile().unwrap()]).unwrap())
}

fn entropy() -> Box<dyn VirtioDevice> {
    Box::new(RngDevice::new().unwrap())
}

fn balloon() -> Box<dyn VirtioDevice> {
    let released = ReleasedPages::none_of(page_count(&guest_memory()));
    Box::new(BalloonDevice::new(Arc::new(released)).unwrap())
}

/// A card without a link: what the guest sends is dropped, and its buffers come back.
fn network_card() -> Box<dyn VirtioDevice> {
    let config = NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST };
    Box::new(NetDevice::new(config).unwrap().0)
}

type Make = fn() -> Box<dyn VirtioDevice>;
const DEVICES: [Make; 6] = [read_only_disk, slot, writable_disk, entropy, balloon, network_card];

/// Gives a live device of every kind the ring that `break_ring` makes, and expects it to stop with `what`, to answer
/// nothing, and to work again after a reset.
fn expect_stop(what: &str, break_ring: impl Fn(&MockDriver)) {
    for device in DEVICES {
        let mut driver = MockDriver::live(device());
        break_ring(&driver);
        driver.kick(driver.attacked());
        assert!(driver.needs_reset(), "{what}");
        let reason = driver.transport.last_failure().unwrap();
        assert!(reason.contains(what), "{reason:?} does not say {what:?}");
        assert_eq!(driver.used_index(driver.attacked()), 0);
        works_after_reset(&mut driver);
    }
}

fn works_after_reset(driver: &mut MockDriver) {
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.negotiate(VERSION_1);
    driver.set_up_queue(driver.attacked(), rings_of(0, 8));
    driver.set_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert!(driver.transport.is_live());
    put_good_request(driver, 0);
    driver.kick(driver.attacked());
    assert_eq!(driver.used_index(driver.attacked()), 1);
}

/// Types of devices.
const NET: u32 = 1;
const BLOCK: u32 = 2;

/// A request that the device understands, in the descriptors from `first` on.
fn put_good_request(driver: &MockDriver, first: u16) {
    let kind = driver.read(VIRTIO_MMIO_DEVICE_ID);
    if kind == BLOCK {
        driver.fill(BUFFERS, &[0; 16]);
        let parts = [Part::Readable(BUFFERS, 16), Part::Writable(HIGH_START, 512), Part::Writable(BUFFERS + 64, 1)];
        driver.set_chain(driver.attacked(), first, &parts);
    } else if kind == NET {
        driver.set_chain(driver.attacked(), first, &[Part::Readable(BUFFERS, 64)]);
    } else {
        driver.set_chain(driver.attacked(), first, &[Part::Writable(HIGH_START, 512)]);
    }
    driver.publish(driver.attacked(), first);
}

#[test]
fn descriptor_loops() {
    expect_stop("loops", |driver| {
        driver.set_descriptor(driver.attacked(), 0, BUFFERS, 16, NEXT | WRITE, 0);
        driver.publish(driver.attacked(), 0);
    });
    expect_stop("loops", |driver| {
        driver.set_descriptor(driver.attacked(), 3, BUFFERS, 16, NEXT | WRITE, 5);
        driver.set_descriptor(driver.attacked(), 5, BUFFERS, 16, NEXT | WRITE, 3);
        driver.publish(driver.attacked(), 3);
    });
    // One that starts good, and whose every descriptor but the last is on it once only.
    expect_stop("loops", |driver| {
        for index in 0..8 {
            driver.set_descriptor(
                driver.attacked(),
                index,
                BUFFERS,
                16,
                NEXT | WRITE,
                if index == 7 { 1 } else { index + 1 },
            );
        }
        driver.publish(driver.attacked(), 0);
    });
}

#[test]
fn indices_out_of_range() {
    // No queue of these devices is larger.
    for index in [128, 129, 0x8000, u16::MAX] {
        expect_stop("descriptor index", |driver| driver.publish(driver.attacked(), index));
        expect_stop("descriptor index", |driver| {
            driver.set_descriptor(driver.attacked(), 0, BUFFERS, 16, NEXT | WRITE, index);
            driver.publish(driver.attacked(), 0);
        });
    }
}

#[test]
fn addresses_out_of_range() {
    let cases = [
        (LOW_END, 1),
        (LOW_END - 1, 2),
        (LOW_END - 16, (HIGH_START - LOW_END + 32) as u32),
        (HIGH_START - 1, 2),
        (HIGH_END, 1),
        (HIGH_END - 1, 2),
        (0, u32::MAX),
        (1 << 40, 16),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 15, 16),
        (u64::MAX - 14, 16),
        (1 << 63, 0x8000_0000),
    ];
    for (address, length) in cases {
        for flags in [0, WRITE] {
            expect_stop("are not memory", |driver| {
                driver.set_descriptor(driver.attacked(), 0, address, length, flags, 0);
                driver.publish(driver.attacked(), 0);
            });
        }
        // The same behind a good one.
        expect_stop("are not memory", |driver| {
            driver.set_descriptor(driver.attacked(), 0, BUFFERS, 16, NEXT | WRITE, 1);
            driver.set_descriptor(driver.attacked(), 1, address, length, WRITE, 0);
            driver.publish(driver.attacked(), 0);
        });
    }
}

#[test]
fn indirect_tables() {
    for flags in [INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE] {
        expect_stop("indirect", |driver| {
            driver.set_descriptor(driver.attacked(), 0, BUFFERS, 64, flags, 1);
            driver.set_descriptor(driver.attacked(), 1, BUFFERS, 64, WRITE, 0);
            driver.publish(driver.attacked(), 0);
        });
        expect_stop("indirect", |driver| {
            driver.set_descriptor(driver.attacked(), 0, BUFFERS, 64, NEXT | WRITE, 1);
            driver.set_descriptor(driver.attacked(), 1, BUFFERS, 64, flags, 2);
            driver.publish(driver.attacked(), 0);
        });
    }
}

#[test]
fn wrong_direction() {
    expect_stop("after a device-writable one", |driver| {
        driver.set_chain(
            driver.attacked(),
            0,
            &[Part::Writable(BUFFERS, 16), Part::Readable(BUFFERS, 16), Part::Writable(BUFFERS, 1)],
        );
        driver.publish(driver.attacked(), 0);
    });
    // Only readable: nowhere to answer. Of a card's transmit queue, only writable: nothing to send.
    expect_stop("", |driver| {
        let is_card = driver.read(VIRTIO_MMIO_DEVICE_ID) == NET;
        let part = if is_card { Part::Writable(BUFFERS, 16) } else { Part::Readable(BUFFERS, 16) };
        driver.set_chain(driver.attacked(), 0, &[part; 2]);
        driver.publish(driver.attacked(), 0);
    });
}

#[test]
fn zero_lengths() {
    for flags in [0, WRITE, NEXT, NEXT | WRITE] {
        expect_stop("no length", |driver| {
            driver.set_descriptor(driver.attacked(), 0, BUFFERS, 0, flags, 1);
            driver.set_descriptor(driver.attacked(), 1, BUFFERS, 16, WRITE, 0);
            driver.publish(driver.attacked(), 0);
        });
    }
    // Not even an address that is not there is looked at.
    expect_stop("no length", |driver| {
        driver.set_descriptor(driver.attacked(), 0, u64::MAX, 0, WRITE, 0);
        driver.publish(driver.attacked(), 0);
    });
}

#[test]
fn available_index_jumps() {
    // No queue of these devices is larger.
    for jump in [129, 130, 1000, 0x8000, u16::MAX] {
        expect_stop("available ring", |driver| {
            driver.set_chain(driver.attacked(), 0, &[Part::Readable(BUFFERS, 16), Part::Writable(BUFFERS, 1)]);
            driver.set_available_index(driver.attacked(), jump);
        });
    }
}

#[test]
fn the_available_index_may_run_backwards_only_once() {
    for device in DEVICES {
        let mut driver = MockDriver::live(device());
        put_good_request(&driver, 0);
        driver.kick(driver.attacked());
        assert_eq!(driver.used_index(driver.attacked()), 1);
        driver.set_available_index(driver.attacked(), 0);
        driver.kick(driver.attacked());
        assert!(driver.needs_reset());
    }
}

#[test]
fn a_block_request_needs_a_header_and_a_status() {
    let short = [
        vec![Part::Readable(BUFFERS, 15), Part::Writable(BUFFERS, 1)],
        vec![Part::Readable(BUFFERS, 8), Part::Readable(BUFFERS, 7), Part::Writable(BUFFERS, 1)],
        vec![Part::Writable(BUFFERS, 17)],
        vec![Part::Readable(BUFFERS, 16)],
        vec![Part::Readable(BUFFERS, 16), Part::Readable(BUFFERS, 512)],
    ];
    for parts in short {
        let mut driver = MockDriver::live(writable_disk());
        driver.set_chain(driver.attacked(), 0, &parts);
        driver.publish(driver.attacked(), 0);
        driver.kick(driver.attacked());
        assert!(driver.needs_reset(), "{parts:?}");
        works_after_reset(&mut driver);
    }
    // In pieces it is as good as in one.
    let mut driver = MockDriver::live(writable_disk());
    driver.fill(BUFFERS, &[0; 64]);
    let mut parts: Vec<_> = (0..16).map(|at| Part::Readable(BUFFERS + at, 1)).collect();
    parts.push(Part::Writable(HIGH_START, 513));
    driver.fill(HIGH_START + 512, &[9]);
    driver.set_chain(driver.attacked(), 0, &parts);
    driver.publish(driver.attacked(), 0);
    driver.kick(driver.attacked());
    assert_eq!(driver.used_index(driver.attacked()), 1);
    assert_eq!(driver.bytes(HIGH_START + 511, 2), [0x22, 0]);
}

#[test]
fn chains_as_long_as_the_queue_are_served() {
    for device in DEVICES {
        let mut driver = MockDriver::live(device());
        driver.fill(BUFFERS, &[0; 16]);
        let size = driver.rings(driver.attacked()).size as usize;
        let mut parts = vec![Part::Writable(HIGH_START, 1024); size];
        if size == 128 {
            parts = vec![Part::Readable(HIGH_START, 500); size];
        } else if size == 64 {
            parts[0] = Part::Readable(BUFFERS, 16);
        }
        driver.set_chain(driver.attacked(), 0, &parts);
        driver.publish(driver.attacked(), 0);
        driver.kick(driver.attacked());
        assert!(!driver.needs_reset());
        assert_eq!(driver.used_index(driver.attacked()), 1);
    }
}

#[test]
fn all_of_memory_in_one_request_is_an_io_error() {
    for kind in [0_u32, 1, 4, 8, 11, 13] {
        let mut driver = MockDriver::live(writable_disk());
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        driver.fill(BUFFERS, &header);
        let mut parts = vec![Part::Readable(BUFFERS, 16)];
        let all = (HIGH_END - HIGH_START) as u32;
        parts.extend([Part::Readable(HIGH_START, all); 30]);
        parts.extend([Part::Writable(HIGH_START, all); 30]);
        parts.push(Part::Writable(BUFFERS + 64, 1));
        driver.set_chain(driver.attacked(), 0, &parts);
        driver.publish(driver.attacked(), 0);
        driver.kick(driver.attacked());
        assert!(!driver.needs_reset());
        let status = driver.bytes(BUFFERS + 64, 1)[0];
        // FLUSH and GET_ID need no data and take no notice of it.
        assert_eq!(status, u8::from(![4, 8].contains(&kind)), "{kind}");
    }
}

#[test]
fn a_chain_of_more_than_4_gib_is_refused() {
    // Never touched, so it takes no host memory.
    let size = 3 << 30;
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), size)]).unwrap();
    let mut queue = Queue::new(8).unwrap();
    queue.try_set_desc_table_address(GuestAddress(0x1000)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(0x2000)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(0x3000)).unwrap();
    queue.set_ready(true);
    let descriptor = |index: u64, length: u32, flags: u16, next: u16| {
        let at = 0x1000 + 16 * index;
        memory.write_obj(0_u64, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    };
    let rest = u32::try_from((1_u64 << 32) - 1 - size as u64).unwrap();
    descriptor(0, size as u32, NEXT, 1);
    descriptor(1, rest, WRITE, 0);
    memory.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
    let chain = Chain::pop(&mut queue, &memory).unwrap().unwrap();
    assert_eq!(chain.readable.len() + chain.writable.len(), u64::from(u32::MAX));
    descriptor(1, rest + 1, WRITE, 0);
    memory.write_obj(2_u16, GuestAddress(0x2002)).unwrap();
    assert!(matches!(Chain::pop(&mut queue, &memory), Err(ChainError::Length { head: 0 })));
}

#[test]
fn buffers_may_cross_from_one_region_into_the_next() {
    let regions = [(GuestAddress(0), 0x10_0000), (GuestAddress(0x10_0000), 0x10_0000)];
    let memory = Arc::new(GuestMemory::from_ranges(&regions).unwrap());
    let mut driver = MockDriver::with_memory(entropy(), memory);
    driver.negotiate(VERSION_1);
    driver.set_up_queue(driver.attacked(), rings_of(0, 8));
    driver.set_status(VIRTIO_CONFIG_S_DRIVER_OK);
    driver.set_chain(driver.attacked(), 0, &[Part::Writable(0x10_0000 - 32, 64)]);
    driver.publish(driver.attacked(), 0);
    driver.kick(driver.attacked());
    assert_eq!(driver.last_used(driver.attacked()), (0, 64));
    assert_ne!(driver.bytes(0x10_0000 - 32, 32), [0; 32]);
    assert_ne!(driver.bytes(0x10_0000, 32), [0; 32]);
}

/// Rings that lie on each other, or on what they describe.
fn rings() -> impl Strategy<Value = Rings> {
    let address = prop_oneof![
        prop::sample::select(vec![0_u64, 0x1_0000, 0x1_0010, 0x1_0400, 0x1_4000, 0x1_8000, LOW_END - 0x400, LOW_END]),
        (0_u64..0x100).prop_map(|slot| 0x1_0000 + 4 * slot),
        (0..HIGH_END / 16).prop_map(|slot| slot * 16),
    ];
    let size = prop_oneof![4 => prop::sample::select(vec![1_u32, 2, 8, 64]), 1 => 0_u32..130];
    (size, address.clone(), address.clone(), address).prop_map(|(size, descriptors, available, used)| Rings {
        size,
        descriptors,
        available,
        used,
    })
}

#[derive(Debug, Clone)]
enum Attack {
    Descriptor { index: u16, address: u64, length: u32, flags: u16, next: u16 },
    Header { address: u64, kind: u32, sector: u64 },
    Good(u16),
    Publish(u16),
    AvailableIndex(u16),
    Scribble { address: u64, bytes: Vec<u8> },
    Kick,
    HostReady,
    Status(u32),
    SetUp(Rings),
}

fn attack() -> impl Strategy<Value = Attack> {
    let address = prop_oneof![
        4 => (0_u64..0x10).prop_map(|slot| BUFFERS + slot * 256),
        2 => HIGH_START..HIGH_END,
        1 => prop::sample::select(vec![LOW_END - 1, LOW_END, HIGH_START - 1, HIGH_END - 512, HIGH_END - 1, u64::MAX]),
        // The rings themselves.
        2 => 0x1_0000_u64..0x1_9000,
        1 => 0x3_0000_u64..0x3_9000,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        4 => prop::sample::select(vec![1_u32, 16, 17, 512, 513, 1024, 4096]),
        1 => Just(0),
        1 => Just(u32::MAX),
        1 => any::<u32>(),
        2 => 1_u32..70_000,
    ];
    let flags = prop_oneof![6 => 0_u16..4, 1 => 0_u16..8, 1 => any::<u16>()];
    let index = prop_oneof![8 => 0_u16..8, 2 => 0_u16..64, 1 => any::<u16>()];
    let kind = prop_oneof![4 => prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13]), 1 => any::<u32>()];
    let sector = prop_oneof![4 => 0_u64..130, 1 => any::<u64>()];
    prop_oneof![
        8 => (index.clone(), address.clone(), length, flags, index.clone()).prop_map(
            |(index, address, length, flags, next)| Attack::Descriptor { index: index % 64, address, length, flags, next }
        ),
        4 => (address.clone(), kind, sector)
            .prop_map(|(address, kind, sector)| Attack::Header { address, kind, sector }),
        2 => (0_u16..60).prop_map(Attack::Good),
        6 => index.prop_map(Attack::Publish),
        1 => any::<u16>().prop_map(Attack::AvailableIndex),
        2 => (address, prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(address, bytes)| Attack::Scribble { address, bytes }),
        6 => Just(Attack::Kick),
        2 => Just(Attack::HostReady),
        1 => prop::sample::select(vec![0_u32, 1, 3, 11, 15, 128]).prop_map(Attack::Status),
        1 => prop_oneof![2 => prop::sample::select(vec![rings_of(0, 8), rings_of(0, 32), rings_of(0, 64)]), 1 => rings()]
            .prop_map(Attack::SetUp),
    ]
}

fn carry_out(driver: &mut MockDriver, attack: Attack) {
    let memory = Arc::clone(&driver.memory);
    match attack {
        Attack::Descriptor { index, address, length, flags, next } => {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            let table = driver.rings(driver.attacked()).descriptors;
            let _ = memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index)));
        }
        Attack::Header { address, kind, sector } => {
            let _ = memory.write_obj(kind, GuestAddress(address));
            let _ = memory.write_obj(sector, GuestAddress(address.wrapping_add(8)));
        }
        Attack::Good(first) => {
            let rings = driver.rings(driver.attacked());
            if (0..3).any(|place| rings == rings_of(place, rings.size)) {
                put_good_request(driver, first);
            }
        }
        Attack::Publish(head) => {
            let rings = driver.rings(driver.attacked());
            let index: u16 = memory.read_obj(GuestAddress(rings.available.wrapping_add(2))).unwrap_or(0);
            let slot = u64::from(index) % u64::from(rings.size.max(1));
            let _ = memory.write_obj(head, GuestAddress(rings.available.wrapping_add(4 + 2 * slot)));
            let _ = memory.write_obj(index.wrapping_add(1), GuestAddress(rings.available.wrapping_add(2)));
        }
        Attack::AvailableIndex(index) => {
            let _ = memory.write_obj(index, GuestAddress(driver.rings(driver.attacked()).available.wrapping_add(2)));
        }
        Attack::Scribble { address, bytes } => {
            let _ = memory.write_slice(&bytes, GuestAddress(address));
        }
        // Rings on top of each other may keep a device busy without limit; only each turn must end.
        Attack::Kick => _ = driver.kick_for(driver.attacked(), 20),
        Attack::HostReady => driver.transport.host_ready(),
        Attack::Status(status) => driver.write(VIRTIO_MMIO_STATUS, status),
        Attack::SetUp(rings) => {
            driver.write(VIRTIO_MMIO_STATUS, 0);
            driver.negotiate(VERSION_1);
            driver.set_up_queue(driver.attacked(), rings);
            driver.set_status(VIRTIO_CONFIG_S_DRIVER_OK);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_driver_is_answered_or_stopped(
        device in 0_usize..DEVICES.len(),
        attacks in prop::collection::vec(attack(), 1..120),
    ) {
        let start = Instant::now();
        let mut driver = MockDriver::live(DEVICES[device]());
        for attack in attacks {
            carry_out(&mut driver, attack);
        }
        works_after_reset_or_waits(&mut driver);
        prop_assert!(start.elapsed() < Duration::from_secs(20));
    }
}

/// As [`works_after_reset`]; the entropy device may have to wait for its next period.
fn works_after_reset_or_waits(driver: &mut MockDriver) {
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.negotiate(VERSION_1);
    driver.set_up_queue(driver.attacked(), rings_of(0, 8));
    driver.set_status(VIRTIO_CONFIG_S_DRIVER_OK);
    put_good_request(driver, 0);
    let start = Instant::now();
    driver.kick_for(driver.attacked(), 1);
    while driver.used_index(driver.attacked()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", driver.transport);
        thread::sleep(Duration::from_millis(5));
        if driver.host_fd_is_readable() {
            driver.transport.host_ready();
        }
    }
}

#[test]
fn memory_that_changes_under_the_device() {
    for device in DEVICES {
        let memory = guest_memory();
        let mut driver = MockDriver::with_memory(device(), Arc::clone(&memory));
        let stop = Arc::new(AtomicBool::new(false));
        let scribbler = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut seed = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let at = seed >> 33;
                    // Descriptors, the available ring's entries and, more rarely, its index.
                    let address = match at % 8 {
                        0..=4 => 0x1_0000 + at % 1024,
                        5 | 6 => 0x1_4004 + at % 128,
                        _ => 0x1_4002,
                    };
                    let value = (seed >> 40) as u8 & 0x3f;
                    let _ = memory.write_obj(value, GuestAddress(address));
                }
            })
        };
        let start = Instant::now();
        let mut stops = 0;
        while start.elapsed() < Duration::from_millis(300) {
            driver.write(VIRTIO_MMIO_STATUS, 0);
            driver.negotiate(VERSION_1);
            driver.set_up_queue(driver.attacked(), rings_of(0, 8));
            driver.set_status(VIRTIO_CONFIG_S_DRIVER_OK);
            for first in [0, 4] {
                put_good_request(&driver, first);
                driver.kick_for(driver.attacked(), 3);
            }
            stops += u32::from(driver.needs_reset());
        }
        stop.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
        assert!(stops > 0, "the scribbling is noticed now and then");
        works_after_reset_or_waits(&mut driver);
    }
}
