//! Restore and fork: the guest learns that its connections are gone before anything else reaches it.

use super::super::{
    device::{EVENT, RECEIVE, TRANSMIT, VsockDevice, VsockOptions},
    limits::Limits,
    packet::{Header, Operation},
};
use super::{
    guest::{Guest, Setup, listener},
    in_child_and_here,
    peer::{PORT, Peer, pattern, read_line, read_now},
};
use crate::devices::virtio::{
    device::{DeviceError, Interrupt, VirtioDevice},
    transport::MmioTransport,
};
use sandboxvm_protocol::{ids::GuestCid, machine::OutputRate};
use std::{io::Write, os::unix::net::UnixStream, sync::Arc, time::Duration};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RELEASES_SOON: Limits = Limits { completion_delay: Duration::from_millis(300), ..Limits::DEFAULT };

/// Puts a new device in the old one's place, as a restore does; the memory and queues stay.
fn restore(guest: &mut Guest) {
    let state = guest.device.save_state();
    std::fs::remove_file(guest.path()).unwrap();
    let listener = listener(guest.directory(), "vsock.sock");
    let mut device =
        VsockDevice::with_limits(VsockOptions::unlimited(GuestCid::DEFAULT), listener, guest.limits).unwrap();
    device.restore_state(&state).unwrap();
    guest.device = device;
    notify_all(guest);
}

/// As the transport does after a restore.
fn notify_all(guest: &mut Guest) {
    for queue in [RECEIVE, TRANSMIT, EVENT] {
        guest.call(|device, context| device.queue_notified(queue, context)).unwrap();
    }
}

/// The guest's driver handles its events and gives the buffers back, as Linux does.
fn note(guest: &mut Guest) -> usize {
    let events = guest.events();
    for event in &events {
        assert_eq!(event, &[0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
        guest.post_event();
    }
    guest.kick();
    events.len()
}

fn dial(peer: &Peer) -> UnixStream {
    let mut client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    client
}

#[test]
fn the_guest_is_told_first_and_connected_at_once_after_it_took_note() {
    for event_idx in [true, false] {
        let mut peer = Peer::new(Setup { event_idx, ..Setup::default() });
        let (mut old, old_port) = peer.connect();
        peer.sockets.clear();
        peer.log.clear();
        let before = peer.guest.interrupts;
        restore(&mut peer.guest);
        assert_eq!(read_now(&mut old, 10), None, "the old client is gone");
        let mut client = dial(&peer);
        peer.run();
        assert!(peer.log.is_empty(), "nothing is sent to a guest that has not taken note");
        assert!(peer.guest.interrupts > before, "the event comes with an interrupt");
        assert!(!peer.guest.host_wants(Duration::from_millis(10)));
        assert_eq!(note(&mut peer.guest), 1);
        peer.run();
        let line = read_line(&mut client);
        let port: u32 = line.strip_prefix("OK ").unwrap().parse().unwrap();
        assert!(port > old_port, "the guest may still know the old port");
        client.write_all(b"hello").unwrap();
        peer.run();
        assert_eq!(peer.read(port, 10), b"hello");
    }
}

#[test]
fn what_the_guest_sent_before_the_restore_is_not_answered() {
    let mut peer = Peer::new(Setup::default());
    let (_old, port) = peer.connect();
    // In the queue, not yet seen by the device, when the snapshot is taken.
    let header = Header { length: 4, ..peer.socket(port).packet(Operation::ReadWrite) };
    let pieces = peer.guest.place(&header.encode(), b"late");
    peer.guest.send_pieces(&pieces);
    restore(&mut peer.guest);
    peer.log.clear();
    // Nor what it sends before it has taken note.
    peer.guest.send(&header, b"late");
    peer.run();
    assert_eq!(note(&mut peer.guest), 1);
    peer.run();
    assert!(peer.log.is_empty(), "a RST would pass for a proper end of the stream: {:?}", peer.log);
    // Afterwards it is a stray like any other.
    peer.guest.send(&header, b"late");
    peer.run();
    assert_eq!(peer.count(Operation::Reset), 1);
}

#[test]
fn held_transmit_buffers_come_back_some_time_after_a_restore() {
    let mut peer = Peer::new(Setup { limits: RELEASES_SOON, ..Setup::default() });
    let (_old, _) = peer.connect();
    assert_eq!(peer.guest.rings[TRANSMIT].outstanding(), 1);
    restore(&mut peer.guest);
    peer.guest.reclaim();
    assert_eq!(peer.guest.rings[TRANSMIT].outstanding(), 1, "nothing that the guest has to look at before its events");
    assert!(peer.guest.host_wants(Duration::from_secs(5)));
    peer.guest.serve();
    peer.guest.reclaim();
    assert_eq!(peer.guest.rings[TRANSMIT].outstanding(), 0);
}

#[test]
fn a_second_restore_before_the_first_was_noted_waits_for_both() {
    let mut peer = Peer::new(Setup::default());
    restore(&mut peer.guest);
    restore(&mut peer.guest);
    peer.log.clear();
    let mut client = dial(&peer);
    peer.run();
    // The guest has handled one event and is about to handle the other.
    assert_eq!(peer.guest.events().len(), 2);
    peer.guest.post_event();
    peer.guest.kick();
    peer.run();
    assert!(peer.log.is_empty());
    peer.guest.post_event();
    peer.guest.kick();
    peer.run();
    assert!(read_line(&mut client).starts_with("OK "));
}

#[test]
fn without_an_event_buffer_the_reset_waits_for_one() {
    let mut peer = Peer::new(Setup::default());
    for _ in 0..4 {
        restore(&mut peer.guest);
    }
    restore(&mut peer.guest);
    let mut client = dial(&peer);
    peer.run();
    assert_eq!(peer.guest.events().len(), 4);
    peer.guest.post_event();
    assert!(peer.guest.kick());
    assert_eq!(peer.guest.events().len(), 1, "the fifth uses the first buffer there is");
    while peer.guest.post_event() {
        assert!(peer.sockets.is_empty());
        peer.guest.kick();
        peer.run();
    }
    peer.run();
    assert!(read_line(&mut client).starts_with("OK "));
}

#[test]
fn a_driver_without_an_event_queue_is_not_waited_for() {
    let mut peer = Peer::new(Setup::default());
    peer.guest.queues[EVENT] = virtio_queue::QueueT::new(4).unwrap();
    restore(&mut peer.guest);
    peer.connect();
}

#[test]
fn a_snapshot_from_before_the_driver_needs_no_reset() {
    let mut guest = Guest::powered(Setup::default());
    let state = guest.device.save_state();
    guest.device.restore_state(&state).unwrap();
    guest.activate();
    guest.fill();
    guest.kick();
    assert!(guest.events().is_empty());
    Peer::of(guest).connect();
}

#[test]
fn forged_states_are_refused_or_stop_the_device() {
    let mut peer = Peer::new(Setup { limits: RELEASES_SOON, ..Setup::default() });
    let good = peer.guest.device.save_state();
    for bad in [&good[..3], &[9, 9, 9], &[]] {
        assert!(matches!(peer.guest.device.restore_state(bad), Err(DeviceError::SavedState(_))), "{bad:?}");
    }
    // A head that is not in the queue.
    peer.guest.device.restore_state(&[good.as_slice(), &[0xff, 0xff]].concat()).unwrap();
    notify_all(&mut peer.guest);
    assert!(peer.guest.host_wants(Duration::from_secs(5)));
    let error = peer.guest.try_serve().unwrap_err();
    assert!(matches!(error, DeviceError::Queue { queue: TRANSMIT, .. }));
}

/// A child of fork(2) drops its copy of the device, and then even leaves: neither may touch the parent's connections.
#[test]
fn a_forked_copy_is_dropped_without_the_parent_noticing() {
    let mut peer = Peer::new(Setup::default());
    let (mut client, port) = peer.connect();
    let mut peer = in_child_and_here(peer, |peer| drop(peer.guest.device));
    client.write_all(b"still here").unwrap();
    peer.run();
    assert_eq!(peer.read(port, 100), b"still here");
    peer.write(port, b"me too");
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"me too");
}

/// Through the real transport: set up by register writes, saved, and restored into another.
#[test]
fn the_transport_saves_and_restores_it() {
    const REGISTERS: [(u64, u64); 3] = [(0x80, 0), (0x90, 0x2000), (0xa0, 0x4000)];
    let guest = Guest::powered(Setup::default());
    let memory = Arc::new(guest.memory.clone());
    let interrupt = || Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let write = |transport: &mut MmioTransport, offset, value: u32| transport.write(offset, &value.to_le_bytes());
    let device =
        |name| VsockDevice::new(VsockOptions::unlimited(GuestCid::DEFAULT), listener(guest.directory(), name)).unwrap();

    let mut transport = MmioTransport::new(Box::new(device("a.sock")), memory.clone(), interrupt()).unwrap();
    for status in [1, 3] {
        write(&mut transport, 0x70, status);
    }
    // VIRTIO_F_VERSION_1 alone.
    write(&mut transport, 0x24, 1);
    write(&mut transport, 0x20, 1);
    write(&mut transport, 0x70, 11);
    for (queue, ring) in guest.rings.iter().enumerate() {
        write(&mut transport, 0x30, u32::try_from(queue).unwrap());
        write(&mut transport, 0x38, ring.size.into());
        for (register, offset) in REGISTERS {
            write(&mut transport, register, u32::try_from(ring.descriptors() + offset).unwrap());
        }
        write(&mut transport, 0x44, 1);
    }
    write(&mut transport, 0x70, 15);
    assert!(transport.is_live(), "{:?}", transport.last_failure());

    let mut copy = MmioTransport::new(Box::new(device("b.sock")), memory.clone(), interrupt()).unwrap();
    let mut rings = guest.rings;
    rings[EVENT].add(&memory, &[super::guest::Piece { address: 0x8_0000, length: 4, writable: true }]);
    copy.restore(&transport.save()).unwrap();
    copy.notify_all();
    assert!(copy.is_live(), "{:?}", copy.last_failure());
    let used: u16 = memory.read_obj(GuestAddress(rings[EVENT].used_ring() + 2)).unwrap();
    assert_eq!(used, 1, "the reset event was sent");
    assert_eq!(copy.interrupt().status(), 1);
}

/// However much a guest made the device charge it, by a chain that goes over the same memory again and again.
#[test]
fn what_a_machine_owed_for_its_output_is_forgotten_when_it_is_put_back() {
    let output_rate = OutputRate::try_from(OutputRate::MIN).ok();
    let mut peer = Peer::new(Setup { output_rate, ..Setup::default() });
    let (_client, port) = peer.connect();
    let header = Header { length: 10, ..peer.socket(port).packet(Operation::ReadWrite) };
    let mut pieces = peer.guest.place(&header.encode(), &pattern(60_000));
    let again = pieces[1];
    pieces.extend([again; 4]);
    peer.guest.send_pieces(&pieces);
    peer.guest.kick();
    peer.run();
    assert_eq!(peer.write(port, b"waits"), 5);
    peer.run();
    let state = peer.guest.device.save_state();
    peer.guest.device.restore_state(&state).unwrap();
    notify_all(&mut peer.guest);
    assert_eq!(note(&mut peer.guest), 1);
    peer.run();
    let (mut client, port) = peer.connect();
    assert_eq!(peer.write(port, b"without"), 7);
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"without");
}
