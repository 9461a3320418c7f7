//! vsock packets that lie, flood, come from others, or belong to nothing, with real hosts at the other end. A connection
//! that is lied about is reset; another on the same device goes on, and so does another machine's.

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

/// Port of the connection that nothing may disturb.
const GOOD: u32 = 1;
/// Port of the one that is abused.
const BAD: u32 = 2;

/// A window's worth of bounds: what a connection's client does not take is kept for it.
const TALKING: Bounds = Bounds { private_kib: 8 << 10, descriptors: 80 };

fn begin(image: &mut Image) -> SocketDriver {
    SocketDriver::begin(image, Window::of(SOCKET), layout::FREE, None)
}

/// Reads to the end of the stream.
fn rest(mut client: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset connection may end in an error in place of an end.
    let _ = client.read_to_end(&mut bytes);
    bytes
}

/// What a guest may do to a connection of its own that gets it reset at once.
fn lies() -> Vec<(&'static str, Packet, &'static [u8])> {
    let data = Packet { length: 4, ..Packet::new(BAD, operation::READ_WRITE) };
    vec![
        ("more data than there is", Packet { length: 5, ..data }, b"four"),
        ("far more", Packet { length: u32::MAX, ..data }, b"four"),
        ("more than a packet holds", Packet { length: 64 * 1024 + 1, ..data }, b"four"),
        ("no such operation", Packet::new(BAD, 0), b""),
        ("none of a later version either", Packet::new(BAD, 8), b""),
        ("the last operation there could be", Packet::new(BAD, u16::MAX), b""),
        ("a second answer", Packet::new(BAD, operation::RESPONSE), b""),
        ("a second request", Packet::new(BAD, operation::REQUEST), b""),
        ("more bytes taken than were sent", Packet { forwarded: 1, ..Packet::new(BAD, operation::CREDIT_UPDATE) }, b""),
        ("2 GiB taken", Packet { forwarded: i32::MAX as u32, ..Packet::new(BAD, operation::CREDIT_UPDATE) }, b""),
    ]
}

/// Packets that belong to no connection, whatever they say.
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
fn a_lie_costs_its_own_connection() {
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
    machine.finish().in_order();
}

/// Everything from everywhere to everybody: answered with a reset or not at all, and the one connection there is goes on.
#[test]
fn packets_of_no_connection() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let good = driver.accept(&mut image, GOOD, 1 << 20);
    for stray in strays() {
        driver.send_raw(&mut image, stray, b"");
        // A reset is not answered, nor is what comes from an address that an answer would not reach.
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
    machine.finish().in_order();
}

/// Packets in buffers that hold none: too short, in pieces, pointing the wrong way.
#[test]
fn buffers_that_hold_no_packet() {
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
    BareMachine::boot(&artefacts, &image, Shape::default()).finish().in_order();
}

/// Requests that nobody answers, thousands of them, while the guest takes no buffer back: replies do not pile up.
#[test]
fn a_flood_that_is_never_read() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let mut driver = begin(&mut image);
    let at = driver.allocate(64);
    image.put(at, &Packet { destination_port: 9, ..Packet::new(GOOD, operation::REQUEST) }.encode());
    // Sixteen-bit counters in a loop of four: the ring comes back to where it was.
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

/// The host sends, the guest says that there is no room, or room without end: the host's bytes wait where they are.
#[test]
fn credit_that_is_not_there() {
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

/// The guest sends more than it was told there is room for, to a client that reads nothing.
#[test]
fn credit_that_is_overdrawn() {
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
    // A socket's buffer and a window hold well under 2 MiB.
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

/// Connections that the guest neither takes nor refuses, ends in one direction, or ends without waiting for the answer.
#[test]
fn half_open_connections() {
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
    // Clients that give up take what is held for them along.
    drop(waiting);
    machine.assert_at_rest();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}

/// The device is reset, again and again, with connections on it: their hosts read an end, and the next ones are served.
#[test]
fn resets_with_connections() {
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
    machine.finish().in_order();
}

/// A guest that lets go of no connection, and hosts that make more of them than the VMM has descriptors for: the ones
/// too many wait or are turned away, nothing spins, and whoever has a connection keeps it.
#[test]
fn more_connections_than_descriptors() {
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
    // Knocks on the control socket as well: there is no descriptor left for any of them.
    let knocking: Vec<UnixStream> = (0..4).map(|_| machine.control()).collect();
    assert!(machine.stats().is_some());
    machine.assert_loop_at_rest();
    drop(knocking);
    clients.clear();
    drop(undisturbed);
    // As soon as there are descriptors again, there is an answer.
    machine.assert_control_answers();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}

/// A machine that says back what it is told, over one connection, halting in between.
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

/// Another machine's connection goes on while this one's guest does all of the above at once.
#[test]
fn another_machine_is_not_disturbed() {
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
            client.write_all(b"?").expect("the bystander lives");
            client.read_exact(&mut answer).expect("the bystander answers");
            assert_eq!(&answer, b"!");
        }
    });
    assert_eq!(hostile.finish().typed(), &ExitReason::GuestPanic);
    talker.join().expect("the bystander's connection was disturbed");
    bystander.finish().in_order();
}
