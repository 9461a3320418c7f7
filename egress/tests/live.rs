//! What the supervisor changes while flows are open, and limits, with the real egress process and dialer, in a network
//! namespace.

#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod common;

use common::{
    guest::{Failed, ethernet},
    in_namespace,
    sandbox::{Sandbox, Setup, listed, pin, public},
};
use sandboxvm_protocol::egress::{Decided, EgressEvent, EgressRequest, FlowEnd};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

/// A server that sends back what it reads.
fn echo(address: &str) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || copy(stream));
        }
    });
    at
}

fn copy(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

#[test]
fn new_settings_cut_what_they_do_not_allow_and_nothing_else() {
    if !in_namespace("new_settings_cut_what_they_do_not_allow_and_nothing_else") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(listed(&["198.51.100.1", "198.51.100.2"], &[]));
    let (one, two) = (echo("198.51.100.1"), echo("198.51.100.2"));
    let (kept, cut) = (guest.connect(one).unwrap(), guest.connect(two).unwrap());
    let server = UdpSocket::bind("198.51.100.2:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let udp = guest.udp();
    guest.send_to(udp, b"x", server.local_addr().unwrap());
    server.recv_from(&mut [0; 10]).unwrap();
    sandbox.configure(listed(&["198.51.100.1"], &[])).unwrap();
    assert_eq!(guest.read(cut, 10), Err(Failed::Reset));
    let ends = [sandbox.flow(), sandbox.flow()];
    assert!(ends.iter().all(|record| record.end == FlowEnd::Cut && record.address == two.ip()), "{ends:?}");
    guest.send(kept, b"still").unwrap();
    assert_eq!(guest.read_exact(kept, 5).unwrap(), b"still");
    assert_eq!(guest.connect(two), Err(Failed::Reset));

    // Settings that cannot be read refuse everything, also what was open.
    sandbox.configure(listed(&["198.51.100.1", "not a rule"], &[])).unwrap_err();
    assert_eq!(guest.read(kept, 10), Err(Failed::Reset));
    assert_eq!(guest.connect(one), Err(Failed::Reset));
    sandbox.configure(listed(&["198.51.100.1"], &[])).unwrap();
    guest.connect(one).unwrap();
}

#[test]
fn open_flows_outlive_their_pin_but_not_their_name() {
    if !in_namespace("open_flows_outlive_their_pin_but_not_their_name") {
        return;
    }
    let at = echo("198.51.100.1");
    let rule = format!("a.example:{}", at.port());
    let mut pins = pin("a.example", 1);
    pins.iter_mut().for_each(|pin| pin.seconds = 10);
    let setup = Setup { pins: pins.to_vec(), ..Setup::from(listed(&[&rule], &[])) };
    let (mut sandbox, mut guest) = Sandbox::start(setup);
    let tcp = guest.connect(at).unwrap();
    guest.send(tcp, b"nameless\n").unwrap();
    assert_eq!(guest.read_exact(tcp, 9).unwrap(), b"nameless\n");
    thread::sleep(Duration::from_secs(11));
    assert_eq!(guest.connect(at), Err(Failed::Reset));
    sandbox.configure(listed(&[&rule, "b.example"], &[])).unwrap();
    guest.send(tcp, b"still").unwrap();
    assert_eq!(guest.read_exact(tcp, 5).unwrap(), b"still");
    sandbox.configure(listed(&["b.example"], &[])).unwrap();
    assert_eq!(guest.read(tcp, 1), Err(Failed::Reset));
}

#[test]
fn pins_are_handed_over_to_a_copy() {
    if !in_namespace("pins_are_handed_over_to_a_copy") {
        return;
    }
    let pins = [pin("a.example", 1), pin("b.example", 2)].concat();
    let setup = Setup { pins: pins.clone(), ..Setup::from(public()) };
    let (mut sandbox, _guest) = Sandbox::start(setup);
    let EgressEvent::Pins(saved) = sandbox.ask(&EgressRequest::Pins) else { panic!("no pins") };
    assert_eq!(saved.len(), 4);
    for (saved, given) in saved.iter().zip(&pins) {
        assert_eq!((&saved.name, saved.address), (&given.name, given.address));
        assert!((2990..=3000).contains(&saved.seconds));
    }
}

#[test]
fn flows_are_limited_in_number_and_rate() {
    if !in_namespace("flows_are_limited_in_number_and_rate") {
        return;
    }
    let mut settings = public();
    (settings.limits.flows, settings.limits.flows_per_second) = (5, 1000);
    let (mut sandbox, mut guest) = Sandbox::start(settings.clone());
    let at = echo("198.51.100.1");
    let open: Vec<_> = (0..5).map(|_| guest.connect(at).unwrap()).collect();
    assert_eq!(guest.connect(at), Err(Failed::Reset));
    let record = sandbox.flow();
    assert!(matches!(&record.decided, Decided::Refused { reason, .. } if reason.contains("too many flows")));
    guest.abort(open[0]);
    assert_eq!(sandbox.flow().end, FlowEnd::Reset);
    guest.connect(at).unwrap();

    (settings.limits.flows, settings.limits.flows_per_second) = (1000, 10);
    sandbox.configure(settings).unwrap();
    let passed = (0..30).filter(|_| guest.connect(at).is_ok()).count();
    assert!((10..20).contains(&passed), "{passed}");
}

#[test]
fn bytes_are_delayed_and_not_dropped() {
    if !in_namespace("bytes_are_delayed_and_not_dropped") {
        return;
    }
    let mut settings = public();
    (settings.limits.bytes_out_per_second, settings.limits.bytes_in_per_second) = (1_000_000, 500_000);
    let (_sandbox, mut guest) = Sandbox::start(settings);
    let at = echo("198.51.100.1");
    let tcp = guest.connect(at).unwrap();
    let begun = Instant::now();
    let data = vec![7; 1_500_000];
    guest.send(tcp, &data).unwrap();
    assert!(guest.read_exact(tcp, data.len()).unwrap() == data);
    // One second's worth is a burst. A machine that is busy with others takes longer, which is not a fault.
    let seconds = begun.elapsed().as_secs_f64();
    assert!(seconds >= 1.5, "{seconds}");
}

#[test]
fn the_process_ends_with_its_supervisor_its_dialer_and_its_machine() {
    if !in_namespace("the_process_ends_with_its_supervisor_its_dialer_and_its_machine") {
        return;
    }
    let (mut sandbox, guest) = Sandbox::start(public());
    drop(guest);
    assert!(sandbox.ended());
    let (mut sandbox, _guest) = Sandbox::start(public());
    sandbox.end_dialer();
    assert!(sandbox.ended());
    let (mut sandbox, _guest) = Sandbox::start(public());
    sandbox.hang_up();
    assert!(sandbox.ended());
}

#[test]
fn questions_for_hardware_addresses_are_answered_but_for_the_guests() {
    if !in_namespace("questions_for_hardware_addresses_are_answered_but_for_the_guests") {
        return;
    }
    let (_sandbox, mut guest) = Sandbox::start(public());
    let arp = |from: [u8; 4], about: [u8; 4]| {
        let head = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0x73, 0x62, 0x78, 0, 2];
        ethernet([8, 6], &[&head[..], &from, &[0; 6], &about].concat())
    };
    for (from, about, is_answered) in [
        ([198, 18, 0, 2], [198, 18, 0, 1], true),
        ([198, 18, 0, 2], [192, 168, 1, 1], true),
        ([198, 18, 0, 2], [198, 18, 0, 2], false),
        ([0, 0, 0, 0], [198, 18, 0, 2], false),
        ([0, 0, 0, 0], [198, 18, 0, 1], false),
    ] {
        guest.card.send(&arp(from, about));
        let answer = guest.frame(Duration::from_millis(300));
        assert_eq!(answer.is_some(), is_answered, "{from:?} {about:?}");
        if let Some(answer) = answer {
            assert_eq!(answer[28..32], about);
        }
    }
}
