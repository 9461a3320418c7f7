//! The register window, set-up and reset as a driver meets them, and snapshots of them.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are this test's own, and small")]

use super::{MmioTransport, QUEUE_NOTIFY_OFFSET, RestoreError, TransportState, WINDOW_SIZE};
use crate::devices::virtio::{
    block::BlockDevice,
    mock_driver::{BUFFERS, HIGH_END, LOW_END, MockDriver, Part, Rings, guest_memory, rings_of},
    rng::RngDevice,
};
use proptest::prelude::*;
use std::{fs::File, sync::Arc};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
        VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
        VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET, VIRTIO_F_VERSION_1,
    },
    virtio_mmio::{
        VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
        VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG,
        VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
        VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
        VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW,
        VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VERSION,
    },
};

const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

fn image() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file
}

fn block() -> Box<BlockDevice> {
    Box::new(BlockDevice::read_only(image()).unwrap())
}

fn rng() -> Box<RngDevice> {
    Box::new(RngDevice::new().unwrap())
}

/// Asks the entropy device for 8 bytes; returns whether it answered.
fn ask_rng(driver: &mut MockDriver) -> bool {
    let used = driver.used_index(0);
    driver.set_chain(0, 0, &[Part::Writable(BUFFERS, 8)]);
    driver.publish(0, 0);
    driver.kick(0);
    driver.used_index(0) != used
}

/// Makes the device fail: its available index is further ahead than the queue is long.
fn break_queue(driver: &mut MockDriver) {
    driver.set_available_index(0, driver.available_index(0).wrapping_add(1000));
    driver.kick(0);
}

#[test]
fn a_device_says_what_it_is() {
    let mut driver = MockDriver::new(block());
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 2);
    assert_eq!(MockDriver::new(rng()).read(VIRTIO_MMIO_DEVICE_ID), 4);
    for register in
        [VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_BASE_HIGH]
    {
        assert_eq!(driver.read(register), u32::MAX);
    }
    // There is one queue.
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    for absent in [1, 2, u32::MAX] {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, absent);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn features_are_read_in_halves_and_none_beyond() {
    let mut driver = MockDriver::new(rng());
    assert_ne!(driver.offered_features() & VERSION_1, 0);
    for beyond in [2, 3, u32::MAX] {
        driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, beyond);
        assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    }
}

#[test]
fn features_not_offered_and_legacy_drivers_are_refused() {
    let offered = MockDriver::new(rng()).offered_features();
    assert!(MockDriver::new(rng()).negotiate(offered));
    assert!(MockDriver::new(rng()).negotiate(VERSION_1));
    assert!(!MockDriver::new(rng()).negotiate(offered & !VERSION_1));
    for feature in (0..64).map(|bit| 1_u64 << bit).filter(|feature| offered & feature == 0) {
        let mut driver = MockDriver::new(rng());
        assert!(!driver.negotiate(offered | feature), "{feature:#x}");
        // Without FEATURES_OK it cannot go live.
        assert_eq!(driver.set_status(DRIVER_OK), ACKNOWLEDGE | DRIVER);
        assert!(!driver.transport.is_live());
    }
}

#[test]
fn features_change_only_between_driver_and_features_ok() {
    let mut driver = MockDriver::new(rng());
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    driver.set_status(ACKNOWLEDGE);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert_eq!(driver.transport.save().driver_features, 0);
    assert!(driver.negotiate(VERSION_1));
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    assert_eq!(driver.transport.save().driver_features, VERSION_1);
}

#[test]
fn the_status_only_grows_in_its_order() {
    let mut driver = MockDriver::new(rng());
    for too_early in [DRIVER, FEATURES_OK, DRIVER_OK, NEEDS_RESET, 16, 32, 1 << 31] {
        assert_eq!(driver.set_status(too_early), 0);
    }
    assert_eq!(driver.set_status(ACKNOWLEDGE), ACKNOWLEDGE);
    assert_eq!(driver.set_status(FEATURES_OK), ACKNOWLEDGE);
    assert_eq!(driver.set_status(DRIVER), ACKNOWLEDGE | DRIVER);
    assert_eq!(driver.set_status(DRIVER_OK), ACKNOWLEDGE | DRIVER);
    // A bit cannot be taken back but by a reset.
    for taken_back in [ACKNOWLEDGE, DRIVER, FAILED, ACKNOWLEDGE | FAILED] {
        driver.write(VIRTIO_MMIO_STATUS, taken_back);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    }
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_driver_that_failed_is_served_no_more() {
    let mut driver = MockDriver::live(rng());
    assert!(ask_rng(&mut driver));
    assert_eq!(driver.set_status(FAILED), LIVE | FAILED);
    assert!(!ask_rng(&mut driver));
    let mut driver = MockDriver::new(rng());
    driver.set_status(FAILED);
    assert_eq!(driver.set_status(ACKNOWLEDGE), FAILED);
}

#[test]
fn queues_are_set_up_between_features_ok_and_driver_ok() {
    let rings = rings_of(0, 8);
    let mut driver = MockDriver::new(rng());
    driver.set_up_queue(0, rings);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "before FEATURES_OK");
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, rings);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    // A ready queue does not change ...
    let ready = driver.transport.save();
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 4);
    driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
    assert_eq!(driver.transport.save(), ready);
    // ... until it is not ready any more.
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 4);
    assert_eq!(driver.transport.save().queues[0].registers.size, 4);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.set_status(DRIVER_OK), LIVE);
    let live = driver.transport.save();
    driver.set_up_queue(0, rings);
    assert_eq!(driver.transport.save(), live);
}

#[test]
fn a_queue_taken_back_is_not_served() {
    let mut driver = MockDriver::live(rng());
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(!ask_rng(&mut driver));
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert!(!ask_rng(&mut driver), "only a reset brings it back");
    assert!(!driver.needs_reset());
}

/// The status after DRIVER_OK with a queue like this.
fn status_with(rings: Rings) -> u32 {
    let mut driver = MockDriver::new(block());
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, rings);
    let status = driver.set_status(DRIVER_OK);
    assert_eq!(driver.transport.is_live(), status == LIVE);
    assert_eq!(driver.transport.failures() > 0, status != LIVE);
    // Whatever came of it, nothing that follows may panic.
    driver.kick(0);
    status
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_limit() {
    for size in [1, 2, 32, 64] {
        assert_eq!(status_with(rings_of(0, size)), LIVE, "{size}");
    }
    for size in [0, 3, 63, 65, 128, 32768, 65535, 65536, 65536 + 64, 1 << 31, u32::MAX] {
        assert_eq!(status_with(rings_of(0, size)), LIVE | NEEDS_RESET, "{size}");
    }
}

#[test]
fn rings_are_aligned_and_in_memory_whole() {
    let good = rings_of(0, 64);
    let (table, available, used) = (64 * 16, 6 + 64 * 2, 6 + 64 * 8);
    for end in [LOW_END, HIGH_END] {
        assert_eq!(status_with(Rings { descriptors: end - table, ..good }), LIVE);
        assert_eq!(status_with(Rings { available: end - available, ..good }), LIVE);
        // 4-byte aligned, with two bytes to spare.
        assert_eq!(status_with(Rings { used: end - used - 2, ..good }), LIVE);
        assert_eq!(status_with(Rings { descriptors: end - table + 16, ..good }), LIVE | NEEDS_RESET);
        assert_eq!(status_with(Rings { available: end - available + 2, ..good }), LIVE | NEEDS_RESET);
        assert_eq!(status_with(Rings { used: end - used + 2, ..good }), LIVE | NEEDS_RESET);
    }
    for outside in [LOW_END, HIGH_END, 1 << 40, 1 << 63, u64::MAX - 15, !0xfff] {
        assert_eq!(status_with(Rings { descriptors: outside, ..good }), LIVE | NEEDS_RESET);
        assert_eq!(status_with(Rings { available: outside, ..good }), LIVE | NEEDS_RESET);
        assert_eq!(status_with(Rings { used: outside, ..good }), LIVE | NEEDS_RESET);
    }
    for skew in [1, 2, 4, 8] {
        assert_eq!(status_with(Rings { descriptors: good.descriptors + skew, ..good }), LIVE | NEEDS_RESET);
    }
    assert_eq!(status_with(Rings { available: good.available + 1, ..good }), LIVE | NEEDS_RESET);
    assert_eq!(status_with(Rings { used: good.used + 1, ..good }), LIVE | NEEDS_RESET);
    assert_eq!(status_with(Rings { used: good.used + 2, ..good }), LIVE | NEEDS_RESET);
}

#[test]
fn a_device_without_ready_queues_is_live_and_idle() {
    let mut driver = MockDriver::new(rng());
    driver.negotiate(VERSION_1);
    assert_eq!(driver.set_status(DRIVER_OK), LIVE);
    assert!(!ask_rng(&mut driver));
    assert!(!driver.needs_reset());
}

#[test]
fn a_failure_stops_the_device_and_tells_the_driver() {
    let mut driver = MockDriver::live(rng());
    assert!(ask_rng(&mut driver));
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    driver.take_interrupts();
    let generation = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    break_queue(&mut driver);
    assert_eq!(driver.status(), LIVE | NEEDS_RESET);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_ne!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(driver.take_interrupts(), 1);
    assert_eq!(driver.transport.failures(), 1);
    assert!(driver.transport.last_failure().unwrap().contains("virtqueue 0"));
    // Mending the queue is not enough, nor are more notifications counted.
    driver.set_available_index(0, 1);
    assert!(!ask_rng(&mut driver));
    assert_eq!(driver.transport.failures(), 1);
    // A reset and a new set-up are.
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!((driver.status(), driver.read(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, rings_of(0, 8));
    driver.set_status(DRIVER_OK);
    assert!(ask_rng(&mut driver));
}

#[test]
fn notifications_mean_nothing_before_driver_ok_or_for_absent_queues() {
    let mut driver = MockDriver::new(rng());
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, rings_of(0, 8));
    assert!(!ask_rng(&mut driver));
    driver.set_status(DRIVER_OK);
    for absent in [1, 64, u32::MAX] {
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, absent);
        driver.transport.queue_notified(absent as usize);
    }
    assert!(!driver.needs_reset());
    // The request from before is found as soon as the right queue is notified.
    driver.kick(0);
    assert_eq!(driver.used_index(0), 1);
}

#[test]
fn interrupt_status_is_cleared_bit_by_bit() {
    let mut driver = MockDriver::live(rng());
    assert!(ask_rng(&mut driver));
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn accesses_of_any_size_at_any_offset_are_harmless() {
    let mut driver = MockDriver::live(block());
    let before = driver.transport.save();
    for size in (0..=16).filter(|size| *size != 4) {
        for offset in 0..WINDOW_SIZE + 16 {
            let mut bytes = vec![0xaa; size];
            driver.transport.read(offset, &mut bytes);
            if !(0x100..WINDOW_SIZE).contains(&offset) {
                assert!(bytes.iter().all(|&byte| byte == 0), "{size} bytes at {offset:#x}");
            }
            driver.transport.write(offset, &vec![0; size]);
            driver.transport.write(offset, &vec![0xff; size]);
        }
    }
    for offset in (0..WINDOW_SIZE + 16).filter(|offset| offset % 4 != 0) {
        let mut bytes = [0xaa; 4];
        driver.transport.read(offset, &mut bytes);
        if offset < 0x100 {
            assert_eq!(bytes, [0; 4], "{offset:#x}");
        }
        driver.transport.write(offset, &[0; 4]);
    }
    for offset in [u64::MAX, u64::MAX - 3, 1 << 32, (1 << 32) + 0x70] {
        let mut bytes = [0xaa; 4];
        driver.transport.read(offset, &mut bytes);
        assert_eq!(bytes, [0; 4]);
        driver.transport.write(offset, &[0; 4]);
    }
    assert_eq!(driver.transport.save(), before);
}

#[derive(Debug, Clone)]
enum Access {
    Read { offset: u64, size: usize },
    Write { offset: u64, size: usize, value: u64 },
    Notify(usize),
    HostReady,
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![
        4 => (0..0x44_u64).prop_map(|register| register * 4),
        1 => 0..WINDOW_SIZE + 8,
        // The registers that lead somewhere.
        4 => prop::sample::select(vec![0x14_u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x90, 0xa0]),
    ];
    let size = prop_oneof![5 => Just(4_usize), 1 => 0_usize..=8];
    let value = prop_oneof![
        3 => prop::sample::select(vec![0_u64, 1, 2, 3, 8, 11, 15, 64, 128, 0x1_0000, 0x1_4000, 0x1_8000, 0xfff0]),
        1 => any::<u64>(),
    ];
    prop_oneof![
        2 => (offset.clone(), size.clone()).prop_map(|(offset, size)| Access::Read { offset, size }),
        6 => (offset, size, value).prop_map(|(offset, size, value)| Access::Write { offset, size, value }),
        1 => (0_usize..3).prop_map(Access::Notify),
        1 => Just(Access::HostReady),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_accesses_leave_a_state_that_restores(
        set_up in any::<bool>(),
        accesses in prop::collection::vec(access(), 1..200),
    ) {
        let image = image();
        let device = || Box::new(BlockDevice::read_only(image.try_clone().unwrap()).unwrap());
        let mut driver = if set_up { MockDriver::live(device()) } else { MockDriver::new(device()) };
        for access in accesses {
            match access {
                Access::Read { offset, size } => driver.transport.read(offset, &mut vec![0; size]),
                Access::Write { offset, size, value } => {
                    driver.transport.write(offset, &value.to_le_bytes()[..size]);
                }
                Access::Notify(queue) => driver.transport.queue_notified(queue),
                Access::HostReady => driver.transport.host_ready(),
            }
        }
        let saved = driver.transport.save();
        let mut other = MockDriver::with_memory(device(), Arc::clone(&driver.memory));
        other.transport.restore(&saved).unwrap();
        let again = other.transport.save();
        prop_assert_eq!(&again.queues.iter().map(|queue| queue.registers).collect::<Vec<_>>(),
            &saved.queues.iter().map(|queue| queue.registers).collect::<Vec<_>>());
        prop_assert_eq!(other.transport.is_live(), driver.transport.is_live());
        if driver.transport.is_live() {
            prop_assert_eq!(again, saved);
        }
    }
}

#[test]
fn a_restored_device_goes_on_where_the_saved_one_was() {
    let mut driver = MockDriver::live(rng());
    for _ in 0..5 {
        assert!(ask_rng(&mut driver));
    }
    // One more is on the ring, and its notification never arrived.
    driver.set_chain(0, 0, &[Part::Writable(BUFFERS, 8)]);
    driver.publish(0, 0);
    let saved = driver.transport.save();
    assert_eq!(saved.interrupt_status, VIRTIO_MMIO_INT_VRING);
    let mut restored = MockDriver::with_memory(rng(), Arc::clone(&driver.memory));
    restored.transport.restore(&saved).unwrap();
    assert_eq!(restored.transport.save(), saved);
    assert_eq!(restored.take_interrupts(), 1, "the unacknowledged interrupt is raised again");
    restored.transport.notify_all();
    assert_eq!(restored.used_index(0), 6);
    restored.transport.notify_all();
    assert_eq!(restored.used_index(0), 6);
}

/// What a live block device's state becomes by `change`, restored into a fresh one.
fn restore_changed(change: impl FnOnce(&mut TransportState)) -> Result<MmioTransport, RestoreError> {
    let driver = MockDriver::live(block());
    let mut state = driver.transport.save();
    change(&mut state);
    let mut other = MockDriver::with_memory(block(), Arc::clone(&driver.memory));
    let result = other.transport.restore(&state);
    let mut transport = other.transport;
    if result.is_err() {
        assert_eq!(transport.save().status, 0, "a refused state leaves a device in reset");
    }
    transport.notify_all();
    transport.host_ready();
    result.map(|()| transport)
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    assert!(restore_changed(|_| {}).is_ok_and(|transport| transport.is_live()));
    assert!(matches!(restore_changed(|state| state.device_type = 4), Err(RestoreError::DeviceType { .. })));
    assert!(matches!(restore_changed(|state| state.queues.clear()), Err(RestoreError::QueueCount { .. })));
    assert!(matches!(
        restore_changed(|state| state.queues.push(state.queues[0].clone())),
        Err(RestoreError::QueueCount { .. })
    ));
    for status in [DRIVER_OK, 2, 9, LIVE & !DRIVER, LIVE | 16, u32::MAX] {
        assert!(matches!(restore_changed(|state| state.status = status), Err(RestoreError::Status { .. })), "{status}");
    }
    assert!(matches!(restore_changed(|state| state.interrupt_status = 4), Err(RestoreError::Status { .. })));
    for features in [0, u64::MAX, VERSION_1 | 1 << 28] {
        let refused = restore_changed(|state| state.driver_features = features);
        assert!(matches!(refused, Err(RestoreError::Features { .. })), "{features:#x}");
    }
    assert!(matches!(restore_changed(|state| state.device = vec![1]), Err(RestoreError::Device { .. })));
    for size in [0, 5, 128, u32::MAX] {
        let refused = restore_changed(|state| state.queues[0].registers.size = size);
        assert!(matches!(refused, Err(RestoreError::Device { .. })), "{size}");
    }
    for address in [LOW_END, u64::MAX, u64::MAX - 15, 0x1_0001] {
        for ring in 0..3 {
            let refused = restore_changed(|state| {
                let registers = &mut state.queues[0].registers;
                *[&mut registers.descriptors, &mut registers.available, &mut registers.used][ring] = address;
            });
            assert!(matches!(refused, Err(RestoreError::Device { .. })), "{ring} {address:#x}");
        }
    }
}

#[test]
fn positions_that_cannot_be_only_stop_the_device() {
    // Where both are is the driver's to know: the device finds out that the ring does not fit.
    for position in [1, 100, 0x8000, u16::MAX] {
        let move_both = |state: &mut TransportState| {
            (state.queues[0].next_available, state.queues[0].next_used) = (position, position);
        };
        let mut transport = restore_changed(move_both).unwrap();
        transport.notify_all();
        assert!(!transport.is_live());
    }
}

/// A device that were ahead in the used ring would feed itself without limit, where its driver laid both rings in one place.
#[test]
fn a_device_that_returned_more_than_it_took_is_refused() {
    for (next_available, next_used) in [(0, 1), (0, 0x8000), (65, 0), (0x8000, 1), (u16::MAX, 0)] {
        let refused = restore_changed(|state| {
            (state.queues[0].next_available, state.queues[0].next_used) = (next_available, next_used);
        });
        assert!(matches!(refused, Err(RestoreError::Device { .. })), "{next_available} {next_used}");
    }
    // As many as the queue holds may be under way, also around the end of the indices.
    for next_used in [0_u16.wrapping_sub(64), u16::MAX, 0] {
        assert!(restore_changed(|state| state.queues[0].next_used = next_used).is_ok_and(|device| device.is_live()));
    }
}

#[test]
fn a_state_from_another_machine_size_is_refused() {
    let driver = MockDriver::live(block());
    let mut state = driver.transport.save();
    state.queues[0].registers.used = HIGH_END - 0x1000;
    let small = crate::memory::GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 0x10_0000)]);
    let mut other = MockDriver::with_memory(block(), Arc::new(small.unwrap()));
    assert!(matches!(other.transport.restore(&state), Err(RestoreError::Device { .. })));
    let mut same = MockDriver::with_memory(block(), guest_memory());
    assert!(same.transport.restore(&state).is_ok());
}

#[test]
fn the_notify_register_is_where_an_ioeventfd_listens() {
    assert_eq!(QUEUE_NOTIFY_OFFSET, 0x50);
}
