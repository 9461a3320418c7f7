//! The card between a driver of the tests and a real socket.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are this test's own, and small")]

use super::{NetDevice, NetworkCard, frame::HEADER};
use crate::devices::virtio::mock_driver::{BUFFERS, HIGH_START, MockDriver, Part};
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt},
};
use sandboxvm_protocol::{
    network::{MacAddress, Mtu},
    vmm::{NetConfig, NetworkCounters},
};
use std::{os::fd::OwnedFd, sync::Arc};
use virtio_bindings::{
    virtio_config::VIRTIO_CONFIG_S_DRIVER_OK,
    virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS},
    virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS},
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};

const RX: usize = 0;
const TX: usize = 1;
const CONFIG_CHANGE: u32 = 2;

fn config() -> NetConfig {
    NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// A live card with a link, and the other end of its cable.
struct Bench {
    driver: MockDriver,
    card: NetworkCard,
    peer: OwnedFd,
}

impl Bench {
    fn new() -> Self {
        Self::without(0)
    }

    fn without(features: u64) -> Self {
        let (device, card) = NetDevice::new(config()).unwrap();
        let (ours, peer) = pair();
        card.attach(ours).unwrap();
        let mut driver = MockDriver::live_without(Box::new(device), features);
        driver.kick(RX);
        Self { driver, card, peer }
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        match recv(&self.peer, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => Some(bytes[..length].to_vec()),
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn send(&self, packet: &[u8]) {
        assert_eq!(send(&self.peer, packet, SendFlags::NOSIGNAL).unwrap(), packet.len());
    }

    /// Lets the event loop serve the device until it wants no more.
    fn serve(&mut self) {
        for _ in 0..10_000 {
            if !self.driver.host_fd_is_readable() {
                return;
            }
            self.driver.transport.host_ready();
        }
        panic!("the device spins");
    }

    /// Offers a frame of the guest whose packet lies at `BUFFERS`, in the descriptors from `first` on.
    fn transmit(&mut self, first: u16, lengths: &[u32]) {
        let mut at = BUFFERS;
        let parts = lengths.iter().map(|length| {
            let part = Part::Readable(at, *length);
            at += u64::from(*length);
            part
        });
        let parts: Vec<_> = parts.collect();
        self.driver.set_chain(TX, first, &parts);
        self.driver.publish(TX, first);
        self.driver.kick(TX);
    }

    /// Gives the device a receive buffer of `length` bytes in descriptor `index`.
    fn offer(&mut self, index: u16, address: u64, length: u32) {
        self.driver.set_chain(RX, index, &[Part::Writable(address, length)]);
        self.driver.publish(RX, index);
    }

    fn sent(&self) -> NetworkCounters {
        self.card.stats().sent
    }

    fn received(&self) -> NetworkCounters {
        self.card.stats().received
    }

    fn link_in_config(&self) -> bool {
        let mut status = [0; 2];
        self.driver.transport.read(u64::from(VIRTIO_MMIO_CONFIG) + 6, &mut status);
        status == [1, 0]
    }

    /// Whether the driver was notified of a change of the configuration, since it was last asked.
    fn config_changed(&mut self) -> bool {
        let changed = self.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS) & CONFIG_CHANGE != 0;
        self.driver.write(VIRTIO_MMIO_INTERRUPT_ACK, CONFIG_CHANGE);
        changed
    }
}

/// The device's header, and a frame of `length` bytes.
fn packet(flags: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![flags];
    packet.resize(HEADER, 0);
    // Of IPv4, by the type in its Ethernet header.
    packet.extend((0..length).map(|at| [8, 0].get(at.wrapping_sub(12)).copied().unwrap_or(at as u8)));
    packet
}

#[test]
fn configuration_has_address_status_queues_and_mtu() {
    let bench = Bench::new();
    let mut space = [0xff; 16];
    bench.driver.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut space);
    assert_eq!(space[..6], MacAddress::GUEST.bytes());
    assert_eq!(space[6..], [1, 0, 1, 0, 0xf0, 0xff, 0, 0, 0, 0]);
}

#[test]
fn frames_of_the_guest_reach_the_socket_in_whatever_pieces_they_lie() {
    let mut bench = Bench::new();
    for lengths in [vec![112], vec![12, 100], vec![1, 11, 14, 86], vec![100, 12], vec![40, 1, 1, 1, 69]] {
        bench.driver.fill(BUFFERS, &packet(1, 100));
        bench.transmit(0, &lengths);
        assert_eq!(bench.receive().unwrap(), packet(1, 100), "{lengths:?}");
        assert_eq!(bench.driver.last_used(TX), (0, 0));
    }
    bench.driver.fill(BUFFERS, &packet(0, 65_534));
    bench.transmit(0, &[12, 60_000, 5_534]);
    assert_eq!(bench.receive().unwrap(), packet(0, 65_534));
    assert_eq!(bench.sent(), NetworkCounters { frames: 6, bytes: 5 * 100 + 65_534, dropped: 0 });
}

#[test]
fn frames_that_are_too_short_or_long_or_tagged_or_segmented_are_dropped() {
    let mut bench = Bench::new();
    let mut expected = 0;
    for (length, at, value) in [(13, 0, 0), (65_535, 0, 0), (100, 1, 1), (100, 24, 0x81), (0, 0, 0)] {
        let mut bad = packet(0, length);
        bad[at] = value;
        bench.driver.fill(BUFFERS, &bad);
        bench.transmit(0, &[bad.len() as u32]);
        expected += 1;
        assert_eq!(bench.sent().dropped, expected, "{length} {at}");
        assert_eq!(bench.driver.used_index(TX), expected as u16);
    }
    bench.transmit(0, &[1]);
    assert_eq!(bench.receive(), None);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn received_frames_are_spread_over_as_many_buffers_as_they_need() {
    let mut bench = Bench::new();
    for index in 0..8 {
        bench.offer(index, HIGH_START + 0x1000 * u64::from(index), 600);
    }
    bench.send(&packet(2, 1000));
    bench.send(&packet(2, 50));
    bench.serve();
    assert_eq!(bench.driver.used_index(RX), 3);
    let first = [bench.driver.bytes(HIGH_START, 600), bench.driver.bytes(HIGH_START + 0x1000, 412)].concat();
    let mut expected = packet(2, 1000);
    expected[10] = 2;
    assert_eq!(first, expected);
    let mut expected = packet(2, 50);
    expected[10] = 1;
    assert_eq!(bench.driver.bytes(HIGH_START + 0x2000, 62), expected);
    assert_eq!(bench.driver.last_used(RX), (2, 62));
    assert_eq!(bench.received(), NetworkCounters { frames: 2, bytes: 1050, dropped: 0 });
    // The other buffers are still the guest's to be filled.
    bench.send(&packet(2, 20));
    bench.serve();
    assert_eq!(bench.driver.last_used(RX), (3, 32));
}

#[test]
fn a_frame_of_the_maximum_size_is_received() {
    let mut bench = Bench::new();
    for index in 0..44 {
        bench.offer(index, HIGH_START + 0x600 * u64::from(index), 0x600);
    }
    bench.send(&packet(2, 65_534));
    bench.serve();
    assert_eq!(bench.driver.used_index(RX), 43);
    let mut expected = packet(2, 65_534);
    expected[10] = 43;
    assert_eq!(bench.driver.bytes(HIGH_START, 65_546), expected);
}

#[test]
fn frames_wait_in_the_socket_for_buffers_of_the_guest() {
    for refused in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let mut bench = Bench::without(refused);
        bench.offer(0, HIGH_START, 600);
        bench.driver.kick(RX);
        bench.send(&packet(0, 1000));
        bench.send(&packet(0, 30));
        bench.serve();
        assert_eq!((bench.driver.used_index(RX), bench.received().frames), (0, 0));
        assert!(!bench.driver.host_fd_is_readable(), "the event loop is not woken for what cannot be done");
        bench.offer(1, HIGH_START + 0x1000, 600);
        bench.driver.kick(RX);
        assert_eq!((bench.driver.used_index(RX), bench.received().frames), (2, 1));
        bench.offer(2, HIGH_START + 0x2000, 600);
        bench.driver.kick(RX);
        assert_eq!((bench.driver.used_index(RX), bench.received().frames), (3, 2));
        assert_eq!(bench.received().dropped, 0);
    }
}

#[test]
fn the_driver_is_asked_for_a_notification_only_while_buffers_are_missing() {
    let mut bench = Bench::new();
    let avail_event = |bench: &Bench| {
        let rings = bench.driver.rings(RX);
        let bytes = bench.driver.bytes(rings.used + 4 + 8 * u64::from(rings.size), 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    };
    for index in 0..3 {
        bench.offer(index, HIGH_START, 100);
    }
    bench.driver.kick(RX);
    bench.send(&packet(0, 1000));
    bench.serve();
    assert_eq!(avail_event(&bench), 3, "beyond the buffers that are there");
    bench.offer(3, HIGH_START, 2000);
    bench.driver.kick(RX);
    assert_eq!(bench.driver.used_index(RX), 4);
    assert_eq!(avail_event(&bench), 3);
}

#[test]
fn a_frame_that_no_buffer_can_hold_is_dropped() {
    // Without merging, one buffer has to hold a frame.
    let mut bench = Bench::without(1 << VIRTIO_NET_F_MRG_RXBUF);
    bench.offer(0, HIGH_START, 600);
    bench.offer(1, HIGH_START + 0x1000, 600);
    bench.send(&packet(0, 1000));
    bench.send(&packet(0, 500));
    bench.serve();
    assert_eq!(bench.received(), NetworkCounters { frames: 1, bytes: 500, dropped: 1 });
    assert_eq!(bench.driver.last_used(RX), (0, 512));
    // With merging, all buffers of a queue.
    let mut bench = Bench::new();
    for index in 0..bench.driver.rings(RX).size as u16 {
        bench.offer(index, HIGH_START, 12);
    }
    bench.send(&packet(0, 2000));
    bench.send(&packet(0, 100));
    bench.serve();
    assert_eq!(bench.received(), NetworkCounters { frames: 1, bytes: 100, dropped: 1 });
}

#[test]
fn bad_frames_of_the_peer_are_dropped() {
    let mut bench = Bench::new();
    bench.offer(0, HIGH_START, 0x1_1000);
    let tagged = |kind: [u8; 2]| {
        let mut packet = packet(0, 100);
        packet[HEADER + 12..HEADER + 14].copy_from_slice(&kind);
        packet
    };
    let mut segmented = packet(0, 100);
    segmented[1] = 1;
    let bad =
        [vec![0], packet(0, 0), packet(0, 13), packet(0, 65_535), tagged([0x81, 0]), tagged([0x88, 0xa8]), segmented];
    for bad in &bad {
        bench.send(bad);
        bench.serve();
    }
    assert_eq!(bench.received(), NetworkCounters { frames: 0, bytes: 0, dropped: bad.len() as u64 });
    bench.send(&packet(0xff, 65_534));
    bench.serve();
    assert_eq!(bench.received().frames, 1);
    // Of its flags the guest sees the one that a card of this kind sets.
    assert_eq!(bench.driver.bytes(HIGH_START, 12), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert!(bench.card.stats().sent == NetworkCounters::default() && bench.link_in_config());
}

#[test]
fn a_driver_that_checks_checksums_itself_sees_no_flags() {
    let mut bench = Bench::without(1 << VIRTIO_NET_F_GUEST_CSUM);
    bench.offer(0, HIGH_START, 200);
    bench.send(&packet(2, 100));
    bench.serve();
    assert_eq!(bench.driver.bytes(HIGH_START, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn frames_wait_in_the_queue_for_room_in_the_socket() {
    let mut bench = Bench::new();
    bench.driver.fill(BUFFERS, &packet(0, 60_000));
    let mut offered = 0;
    while offered == usize::from(bench.driver.used_index(TX)) {
        assert!(offered < 100, "a socket holds no 6 MB");
        bench.transmit(offered as u16, &[60_012]);
        offered += 1;
    }
    assert!(!bench.driver.host_fd_is_readable(), "the event loop is not woken for what cannot be done");
    bench.driver.kick(TX);
    assert_eq!(usize::from(bench.driver.used_index(TX)), offered - 1);
    let mut read = 0;
    while read < offered {
        while bench.receive().is_some() {
            read += 1;
        }
        bench.serve();
    }
    assert_eq!(usize::from(bench.driver.used_index(TX)), offered);
    assert_eq!(bench.sent(), NetworkCounters { frames: offered as u64, bytes: 60_000 * offered as u64, dropped: 0 });
}

#[test]
fn a_frame_larger_than_the_sockets_buffer_is_dropped_and_the_link_stays() {
    let (device, card) = NetDevice::new(config()).unwrap();
    let (ours, peer) = pair();
    sockopt::set_socket_send_buffer_size(&ours, 8192).unwrap();
    card.attach(ours).unwrap();
    let mut bench = Bench { driver: MockDriver::live(Box::new(device)), card, peer };
    bench.driver.fill(BUFFERS, &packet(0, 60_000));
    bench.transmit(0, &[60_012]);
    assert_eq!(bench.sent().dropped, 1);
    bench.transmit(0, &[112]);
    assert_eq!(bench.sent().frames, 1);
}

#[test]
fn without_a_link_frames_are_dropped_and_the_driver_is_notified() {
    let (device, card) = NetDevice::new(config()).unwrap();
    let driver = MockDriver::live(Box::new(device));
    let mut bench = Bench { driver, card, peer: pair().0 };
    assert!(!bench.link_in_config());
    bench.serve();
    assert!(!bench.config_changed(), "a driver that begins reads the status itself");
    bench.driver.fill(BUFFERS, &packet(0, 100));
    bench.transmit(0, &[112]);
    assert_eq!(bench.sent().dropped, 1);

    let (ours, peer) = pair();
    bench.card.attach(ours).unwrap();
    bench.peer = peer;
    assert!(bench.link_in_config());
    bench.serve();
    assert!(bench.config_changed());
    bench.transmit(0, &[112]);
    assert!(bench.receive().is_some());

    bench.peer = pair().0;
    bench.serve();
    assert!(bench.config_changed());
    assert!(!bench.link_in_config());
    bench.transmit(0, &[112]);
    assert_eq!(bench.sent(), NetworkCounters { frames: 1, bytes: 100, dropped: 2 });
    assert!(!bench.config_changed());
}

#[test]
fn a_driver_without_the_status_is_not_notified_of_the_link() {
    let mut bench = Bench::without(1 << VIRTIO_NET_F_STATUS);
    bench.peer = pair().0;
    bench.serve();
    assert!(!bench.config_changed());
    bench.transmit(0, &[112]);
    assert_eq!(bench.sent().dropped, 1);
}

#[test]
fn a_socket_replaces_the_one_before_and_ends_its_backpressure() {
    let mut bench = Bench::new();
    bench.driver.fill(BUFFERS, &packet(0, 60_000));
    for first in 0..10 {
        bench.transmit(first, &[60_012]);
    }
    let carried = bench.sent().frames;
    assert!(carried < 10);
    let (ours, peer) = pair();
    bench.card.attach(ours).unwrap();
    let before = std::mem::replace(&mut bench.peer, peer);
    bench.serve();
    assert!(bench.sent().frames > carried);
    assert!(!bench.config_changed(), "the link stayed");
    drop(before);
    bench.serve();
    assert!(bench.link_in_config());
}

#[test]
fn only_a_unix_socket_for_packets_is_attached() {
    let (_, card) = NetDevice::new(config()).unwrap();
    let socket = |family, kind| socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap().0;
    assert!(card.attach(socket(AddressFamily::UNIX, SocketType::STREAM)).is_err());
    assert!(card.attach(socket(AddressFamily::UNIX, SocketType::DGRAM)).is_err());
    assert!(card.attach(tempfile::tempfile().unwrap().into()).is_err());
    let udp = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    assert!(card.attach(udp).is_err());
    card.attach(pair().0).unwrap();
}

#[test]
fn a_reset_of_the_driver_keeps_the_socket_and_what_waits_in_it() {
    let mut bench = Bench::new();
    bench.driver.write(VIRTIO_MMIO_STATUS, 0);
    bench.send(&packet(0, 100));
    bench.serve();
    let features = bench.driver.offered_features();
    bench.driver.negotiate(features);
    for queue in [RX, TX] {
        let rings = bench.driver.rings(queue);
        bench.driver.set_up_queue(queue, rings);
    }
    bench.driver.set_status(VIRTIO_CONFIG_S_DRIVER_OK);
    bench.offer(0, HIGH_START, 600);
    bench.serve();
    assert_eq!(bench.received().frames, 1);
}

#[test]
fn the_peer_of_a_driver_that_is_gone_may_leave() {
    let mut bench = Bench::new();
    bench.driver.write(VIRTIO_MMIO_STATUS, 0);
    bench.serve();
    bench.peer = pair().0;
    bench.serve();
    assert!(!bench.link_in_config());
}

#[test]
fn a_restored_card_notifies_the_driver_if_the_link_differs() {
    let before = Bench::new();
    let state = before.driver.transport.save();
    let restored = |attach: bool| {
        let (device, card) = NetDevice::new(config()).unwrap();
        let mut driver = MockDriver::with_memory(Box::new(device), Arc::clone(&before.driver.memory));
        driver.transport.restore(&state).unwrap();
        let (ours, peer) = pair();
        if attach {
            card.attach(ours).unwrap();
        }
        driver.transport.notify_all();
        Bench { driver, card, peer }
    };
    let mut lost = restored(false);
    assert!(lost.config_changed() && !lost.link_in_config());
    let mut kept = restored(true);
    assert!(!kept.config_changed() && kept.link_in_config());
    // Put back in place, it keeps its socket.
    kept.driver.transport.restore(&state).unwrap();
    kept.driver.transport.notify_all();
    kept.serve();
    assert!(!kept.config_changed() && kept.link_in_config());
    kept.driver.fill(BUFFERS, &packet(0, 100));
    kept.transmit(0, &[112]);
    assert!(kept.receive().is_some());
}

#[test]
fn saved_states_of_another_form_are_refused() {
    let state = Bench::new().driver.transport.save();
    for bytes in [vec![], vec![1], vec![1, 2], vec![2, 0], vec![1, 0, 0], vec![0; 100]] {
        let mut forged = state.clone();
        forged.device = bytes;
        assert!(Bench::new().driver.transport.restore(&forged).is_err(), "{:?}", forged.device);
    }
}

#[test]
fn receive_buffers_that_point_the_wrong_way_or_hold_no_header_stop_the_device() {
    for part in [Part::Readable(BUFFERS, 100), Part::Writable(BUFFERS, 11)] {
        let mut bench = Bench::new();
        bench.driver.set_chain(RX, 0, &[part]);
        bench.driver.publish(RX, 0);
        bench.send(&packet(0, 100));
        bench.serve();
        assert!(bench.driver.needs_reset());
        bench.serve();
    }
    // In too many pieces for one call: every buffer is the same long chain.
    let mut bench = Bench::new();
    let parts = vec![Part::Writable(BUFFERS, 12); 100];
    bench.driver.set_chain(RX, 0, &parts);
    (0..20).for_each(|_| bench.driver.publish(RX, 0));
    bench.send(&packet(0, 60_000));
    bench.serve();
    assert!(bench.driver.needs_reset());
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    let mut bench = Bench::new();
    let want_at = |bench: &Bench, queue: usize, index: u16| {
        let rings = bench.driver.rings(queue);
        bench.driver.fill(rings.available + 4 + 2 * u64::from(rings.size), &index.to_le_bytes());
    };
    for index in 0..20 {
        bench.offer(index, HIGH_START, 100);
    }
    bench.driver.kick(RX);
    bench.driver.take_interrupts();
    // A frame over several buffers passes the index that the driver waits for.
    want_at(&bench, RX, 1);
    bench.send(&packet(0, 250));
    bench.serve();
    assert_eq!((bench.driver.used_index(RX), bench.driver.take_interrupts()), (3, 1));
    want_at(&bench, RX, 10);
    bench.send(&packet(0, 250));
    bench.serve();
    assert_eq!((bench.driver.used_index(RX), bench.driver.take_interrupts()), (6, 0));
}
