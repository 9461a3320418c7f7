//! vsock packets with false content, floods, packets from other addresses, and packets of no
//! connection, with real hosts at the other end. A connection with false packets is reset. Other
//! connections of the device, and those of other machines, keep working.

use crate::{artefacts, devices::SOCKET};
use sandboxvm_bare_guest::{Image, Instruction, Width, layout};
use sandboxvm_protocol::vmm::ExitReason;
use sandboxvm_tests::{
    artefacts::Artefacts,
    bare::{
        BareMachine, Bounds, Shape,
        driver::{FIRST_LINE, Window},
        socket_driver::{GUEST, HEADER, HOST, Packet, SocketDriver, operation},
    },
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
};

/// Port of the connection that must keep working.
const GOOD: u32 = 1;
/// Port of the connection that is attacked.
const BAD: u32 = 2;

/// Bounds of one window: the VMM keeps that much data for a client that does not read.
const TALKING: Bounds = Bounds { private_kib: 8 << 10, descriptors: 80 };

fn begin(image: &mut Image) -> SocketDriver {
    SocketDriver::begin(image, Window::of(SOCKET), layout::FREE, None)
}

/// Reads until the end of the stream.
fn rest(mut client: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset connection may end with an error instead of an end of stream.
    let _ = client.read_to_end(&mut bytes);
    bytes
}

/// Returns packets of the guest on one of its connections after which the connection must be reset.
fn lies() -> Vec<(&'static str, Packet, &'static [u8])> {
    let data = Packet { length: 4, ..Packet::new(BAD, operation::READ_WRITE) };
    vec![
        ("more data than the packet contains", Packet { length: 5, ..data }, b"four"),
        ("much more data than the packet contains", Packet { length: u32::MAX, ..data }, b"four"),
        ("more data than a packet may contain", Packet { length: 64 * 1024 + 1, ..data }, b"four"),
        ("no such operation", Packet::new(BAD, 0), b""),
        ("no operation of a later version", Packet::new(BAD, 8), b""),
        ("the highest operation number", Packet::new(BAD, u16::MAX), b""),
        ("a second response", Packet::new(BAD, operation::RESPONSE), b""),
        ("a second request", Packet::new(BAD, operation::REQUEST), b""),
        (
            "credit for more bytes than were sent",
            Packet { forwarded: 1, ..Packet::new(BAD, operation::CREDIT_UPDATE) },
            b"",
        ),
        ("credit for 2 GiB", Packet { forwarded: i32::MAX as u32, ..Packet::new(BAD, operation::CREDIT_UPDATE) }, b""),
    ]
}

/// Returns packets that belong to no connection.
fn strays() -> Vec<Packet> {
    let mut strays = Vec::new();
    for operation in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0xffff] {
        let stray = Packet::new(GOOD, operation);
        strays.push(Packet { destination_port: 77, ..stray });
        strays.push(Packet { source_port: 77, destination_port: 1 << 30, ..stray });
        for source_cid in [0, 1, HOST, GUEST + 1, u64::from(u32::MAX), GUEST | 1 << 32, u64::MAX] {
            strays.push(Packet { source_cid, destination_port: 1 << 30, ..stray });
        }
        for destination_cid in [0, 1, GUEST, 4, u64::from(u32::MAX), HOST | 1 << 32, u64::MAX] {
            strays.push(Packet { destination_cid, destination_port: 1 << 30, ..stray });
        }
        for socket_type in [0, 2, 3, u16::MAX] {
            strays.push(Packet { socket_type, destination_port: 1 << 30, ..stray });
        }
    }
    strays
}

#[test]
fn a_false_packet_resets_only_its_connection() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let good = driver.accept(&mut image, GOOD, 1 << 20);
    driver.write(&mut image, good, b"before ");
    for (_, packet, payload) in lies() {
        let bad = driver.accept(&mut image, BAD, 1 << 20);
        driver.send(&mut image, bad, packet, payload);
        let _ = driver.take(&mut image.script, operation::RESET);
        driver.write(&mut image, good, b".");
    }
    let two_ends = Packet { flags: 3, ..Packet::new(GOOD, operation::SHUTDOWN) };
    driver.write(&mut image, good, b" after");
    driver.send(&mut image, good, two_ends, b"");
    let _ = driver.take(&mut image.script, operation::RESET);
    image.script.end();

    let machine = BareMachine::boot(&artefacts, &image, Shape { bounds: TALKING, ..Shape::default() });
    let undisturbed = machine.connect(GOOD);
    for (name, ..) in lies() {
        let abused = machine.connect(BAD);
        let got = rest(abused);
        assert!(got.is_empty(), "{name}: the host got {got:?}");
    }
    assert_eq!(String::from_utf8(rest(undisturbed)).unwrap(), format!("before {} after", ".".repeat(lies().len())));
    machine.finish().assert_script_completed();
}

/// Packets of no connection, from and to many addresses: the device responds with a reset or not at
/// all, and the existing connection keeps working.
#[test]
fn packets_of_no_connection_disturb_no_connection() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let good = driver.accept(&mut image, GOOD, 1 << 20);
    for stray in strays() {
        driver.send_raw(&mut image, stray, b"");
        // The device never responds to a reset, nor to a packet from an address that a response
        // would not reach.
        if stray.operation != operation::RESET && stray.source_cid == GUEST {
            let _ = driver.take(&mut image.script, operation::RESET);
        }
    }
    driver.write(&mut image, good, b"here");
    driver.send(&mut image, good, Packet { flags: 3, ..Packet::new(GOOD, operation::SHUTDOWN) }, b"");
    let _ = driver.take(&mut image.script, operation::RESET);
    image.script.end();
    let machine = BareMachine::boot(&artefacts, &image, Shape::default());
    let undisturbed = machine.connect(GOOD);
    assert_eq!(rest(undisturbed), b"here");
    machine.finish().assert_script_completed();
}

/// Buffers that contain no packet: too short, in pieces, or with the wrong direction.
#[test]
fn buffers_without_a_packet_disturb_no_connection() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let at = driver.allocate(64);
    image.put(at, &Packet::new(GOOD, operation::REQUEST).encode());
    for length in 1..HEADER {
        driver.transmit(&mut image.script, at, length);
    }
    driver.transmit(&mut image.script, at, HEADER);
    let _ = driver.take(&mut image.script, operation::RESET);
    image.script.end();
    BareMachine::boot(&artefacts, &image, Shape::default()).finish().assert_script_completed();
}

/// Thousands of requests while the guest reads no responses. The responses must not pile up.
#[test]
fn responses_that_the_guest_never_reads_do_not_pile_up() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let at = driver.allocate(64);
    image.put(at, &Packet { destination_port: 9, ..Packet::new(GOOD, operation::REQUEST) }.encode());
    // The counters have 16 bits and the ring has four entries, so the ring is in its original state
    // again.
    for _ in 0..1500 {
        driver.transmit(&mut image.script, at, HEADER);
    }
    image.script.say("done");
    let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
    machine.wait_for_console("done");
    assert!(machine.stats().is_some());
    machine.assert_at_rest();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}

/// The guest grants no credit, or far too much, while the host sends. The host's data waits in the
/// socket.
#[test]
fn false_credit_of_the_guest_is_harmless() {
    let Some(artefacts) = artefacts() else { return };
    for credit in [0, 1, u32::MAX] {
        let mut image = Image::new();
        let mut driver = begin(&mut image);
        let good = driver.accept(&mut image, GOOD, 1 << 20);
        let bad = driver.accept(&mut image, BAD, credit);
        for _ in 0..20 {
            driver.send(
                &mut image,
                bad,
                Packet { buffer_size: credit, ..Packet::new(BAD, operation::CREDIT_REQUEST) },
                b"",
            );
        }
        driver.write(&mut image, good, b"here");
        image.script.say("done");
        let mut machine = BareMachine::boot(&artefacts, &image, Shape { bounds: TALKING, ..Shape::default() });
        let mut undisturbed = machine.connect(GOOD);
        let mut flooding = machine.connect(BAD);
        flooding.set_nonblocking(true).unwrap();
        let chunk = [7; 65536];
        let mut sent = 0;
        while let Ok(taken) = flooding.write(&chunk) {
            sent += taken;
        }
        assert!(sent > 0);
        let mut here = [0; 4];
        undisturbed.read_exact(&mut here).unwrap();
        assert_eq!(&here, b"here");
        machine.wait_for_console("done");
        machine.assert_at_rest();
        assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
    }
}

/// The guest sends more data than the device granted credit for, to a client that reads nothing.
#[test]
fn data_beyond_the_credit_of_the_device_is_not_stored() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let good = driver.accept(&mut image, GOOD, 1 << 20);
    let bad = driver.accept(&mut image, BAD, 1 << 20);
    let payload = vec![0x55; 32 << 10];
    let at = driver.allocate(u64::from(HEADER) + payload.len() as u64);
    let packet = Packet { length: 32 << 10, source_port: BAD, ..Packet::new(BAD, operation::READ_WRITE) };
    image.put(at, &[packet.encode(), payload].concat());
    image.script.push(Instruction::Copy { width: Width::Word, to: at + 20, from: bad.cell() });
    // The buffer of a socket and a window are together well under 2 MiB.
    for _ in 0..64 {
        driver.transmit(&mut image.script, at, HEADER + (32 << 10));
    }
    driver.write(&mut image, good, b"here");
    image.script.say("done");
    let mut machine = BareMachine::boot(&artefacts, &image, Shape { bounds: TALKING, ..Shape::default() });
    let mut undisturbed = machine.connect(GOOD);
    let overrun = machine.connect(BAD);
    let mut here = [0; 4];
    undisturbed.read_exact(&mut here).unwrap();
    assert_eq!(&here, b"here");
    machine.wait_for_console("done");
    let got = rest(overrun);
    assert!(got.len() < 64 * (32 << 10) && got.iter().all(|byte| *byte == 0x55), "{} bytes", got.len());
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}

/// Connections that the guest does not respond to, ends in one direction, or ends without waiting
/// for the response.
#[test]
fn half_open_connections_are_cleaned_up() {
    let Some(artefacts) = artefacts() else { return };
    const EACH: usize = 12;
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let good = driver.accept(&mut image, GOOD, 1 << 20);
    for _ in 0..EACH {
        let _ = driver.take_request(&mut image, BAD);
    }
    for round in 0..EACH {
        let bad = driver.accept(&mut image, BAD + 1, 1 << 20);
        let flags = [1, 3, u32::MAX][round % 3];
        driver.send(&mut image, bad, Packet { flags, ..Packet::new(BAD, operation::SHUTDOWN) }, b"");
        if flags & 3 == 3 {
            let _ = driver.take(&mut image.script, operation::RESET);
        }
        driver.send(&mut image, bad, Packet::new(BAD, operation::RESET), b"");
    }
    driver.write(&mut image, good, b"here");
    image.script.say("done");
    let shape = Shape { bounds: Bounds { descriptors: TALKING.descriptors + 2 * EACH, ..TALKING }, ..Shape::default() };
    let mut machine = BareMachine::boot(&artefacts, &image, shape);
    let mut undisturbed = machine.connect(GOOD);
    let waiting: Vec<UnixStream> = (0..EACH)
        .map(|_| {
            let mut client = machine.client();
            client.write_all(format!("CONNECT {BAD}\n").as_bytes()).unwrap();
            client
        })
        .collect();
    for _ in 0..EACH {
        let got = rest(machine.connect(BAD + 1));
        assert!(got.is_empty(), "{got:?}");
    }
    let mut here = [0; 4];
    undisturbed.read_exact(&mut here).unwrap();
    assert_eq!(&here, b"here");
    machine.wait_for_console("done");
    // When clients disconnect, the VMM releases the data that it keeps for them.
    drop(waiting);
    machine.assert_at_rest();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}

/// The device is reset repeatedly while connections exist. Their hosts read an end of stream, and
/// later connections work.
#[test]
fn resets_of_the_device_end_its_connections() {
    let Some(artefacts) = artefacts() else { return };
    const ROUNDS: usize = 20;
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    for round in 0..ROUNDS {
        let connection = driver.accept(&mut image, GOOD, 1 << 20);
        driver.write(&mut image, connection, b"once");
        if round % 2 == 0 {
            driver.window().reset(&mut image.script);
        }
        driver.again(&mut image.script);
    }
    image.script.end();
    let machine = BareMachine::boot(&artefacts, &image, Shape { bounds: TALKING, ..Shape::default() });
    for _ in 0..ROUNDS {
        assert_eq!(rest(machine.connect(GOOD)), b"once");
    }
    machine.finish().assert_script_completed();
}

/// The guest ends no connection, and hosts open more than the VMM has descriptors for. The excess
/// ones wait or are refused, nothing spins, and established connections keep working.
#[test]
fn connections_beyond_the_descriptors_disturb_no_other() {
    let Some(artefacts) = artefacts() else { return };
    let limit: u32 = 64;
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let _ = driver.accept(&mut image, GOOD, 1 << 20);
    let shape = Shape { bounds: TALKING, descriptor_limit: Some(limit), ..Shape::default() };
    let mut machine = BareMachine::boot(&artefacts, &image, shape);
    let undisturbed = machine.connect(GOOD);
    let mut clients: Vec<UnixStream> = (0..2 * limit)
        .map(|_| {
            let mut client = machine.client();
            client.write_all(format!("CONNECT {BAD}\n").as_bytes()).unwrap();
            client
        })
        .collect();
    // Also connects to the control socket: no descriptor is left for these connections.
    let knocking: Vec<UnixStream> = (0..4).map(|_| machine.control()).collect();
    assert!(machine.stats().is_some());
    machine.assert_loop_at_rest();
    drop(knocking);
    clients.clear();
    drop(undisturbed);
    // As soon as descriptors are free again, the control socket responds.
    machine.assert_control_answers();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}

/// Returns a machine that echoes what it receives over one connection, and halts in between.
fn echoing(artefacts: &Artefacts, words: usize) -> (BareMachine, UnixStream) {
    let mut image = Image::new();
    let line = FIRST_LINE + u32::try_from(SOCKET).expect("a few devices");
    let mut driver = SocketDriver::begin(&mut image, Window::of(SOCKET), layout::FREE, Some(line));
    let connection = driver.accept(&mut image, GOOD, 1 << 20);
    for _ in 0..words {
        let _ = driver.take(&mut image.script, operation::READ_WRITE);
        driver.write(&mut image, connection, b"!");
    }
    image.script.end();
    let machine = BareMachine::boot(artefacts, &image, Shape { bounds: TALKING, ..Shape::default() });
    let client = machine.connect(GOOD);
    (machine, client)
}

/// A connection of another machine keeps working while this machine's guest makes all of these
/// attacks.
#[test]
fn attacks_do_not_disturb_another_machine() {
    let Some(artefacts) = artefacts() else { return };
    const WORDS: usize = 200;
    let (bystander, mut client) = echoing(&artefacts, WORDS);
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let at = driver.allocate(64);
    image.put(at, &Packet { length: u32::MAX, ..Packet::new(BAD, operation::READ_WRITE) }.encode());
    for (round, stray) in strays().into_iter().cycle().take(1000).enumerate() {
        driver.send_raw(&mut image, Packet { length: u32::try_from(round).unwrap(), ..stray }, b"");
        driver.transmit(&mut image.script, at, HEADER);
    }
    image.script.give_up();
    let hostile = BareMachine::boot(&artefacts, &image, Shape::default());
    let talker = thread::spawn(move || {
        for _ in 0..WORDS {
            let mut answer = [0];
            client.write_all(b"?").expect("the other machine runs");
            client.read_exact(&mut answer).expect("the other machine responds");
            assert_eq!(&answer, b"!");
        }
    });
    assert_eq!(hostile.finish().typed(), &ExitReason::GuestPanic);
    talker.join().expect("the other machine's connection was disturbed");
    bystander.finish().assert_script_completed();
}
