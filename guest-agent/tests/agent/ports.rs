//! Relays to ports of programs: each direction ends separately, and neither side can harm another
//! relay.

use crate::host::{Agent, Event, encode, noise, wait_until};
use sandboxvm_protocol::agent::port::{PortNumber, PortRequest};
use sandboxvm_protocol::agent::{AgentMessage, FailureKind, HostMessage};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn connect(port: u16) -> HostMessage {
    HostMessage::Connect(PortRequest { port: PortNumber::try_from(port).unwrap() })
}

/// Returns a port on which no program listens.
fn closed_port() -> u16 {
    listener().1
}

fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

/// Returns both ends of a relay.
fn pair(agent: &Agent) -> (UnixStream, TcpStream) {
    let (listener, port) = listener();
    let host = agent.connect_port(port);
    let (program, _) = listener.accept().unwrap();
    program.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (host, program)
}

#[test]
fn a_side_that_ends_its_stream_first_still_reads_all_data() {
    let agent = Agent::start();
    let question = noise(3 << 20, 1);
    let answer = noise(5 << 20, 2);

    // The host ends its stream first, and the program responds after that.
    let (mut host, mut program) = pair(&agent);
    let asked = thread::spawn({
        let (mut host, question) = (host.try_clone().unwrap(), question.clone());
        move || {
            host.write_all(&question).unwrap();
            host.shutdown(Shutdown::Write).unwrap();
        }
    });
    assert!(read_all(&mut program) == question);
    asked.join().unwrap();
    let answered = thread::spawn({
        let answer = answer.clone();
        move || program.write_all(&answer).unwrap()
    });
    assert!(read_all(&mut host) == answer);
    answered.join().unwrap();

    // The program ends its stream first.
    let (mut host, mut program) = pair(&agent);
    program.write_all(b"that is all").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut host), b"that is all");
    let asked = thread::spawn({
        let question = question.clone();
        move || host.write_all(&question).unwrap()
    });
    assert!(read_all(&mut program) == question);
    asked.join().unwrap();
    drop(program);
    assert!(agent.answers_ping());
}

#[test]
fn a_port_without_a_listener_is_refused() {
    let agent = Agent::start();
    let before = agent.open_files();
    for _ in 0..20 {
        let failure = agent.ask(connect(closed_port())).expect_failure();
        assert_eq!(failure.kind, FailureKind::ConnectionRefused);
        assert!(failure.message.contains("nothing in the sandbox listens on port"), "{}", failure.message);
    }
    wait_until("all is closed", || agent.open_files() == before);
}

#[test]
fn a_program_that_listens_only_on_ipv6_is_found() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    let agent = Agent::start();
    let mut host = agent.connect_port(listener.local_addr().unwrap().port());
    listener.accept().unwrap().0.write_all(b"six").unwrap();
    assert_eq!(read_all(&mut host), b"six");
}

#[test]
fn concurrent_relays_do_not_mix() {
    let agent = Agent::start();
    let (listener, port) = listener();
    let before = agent.open_files();
    // Returns what it receives, then ends.
    let echo = thread::spawn(move || {
        let served: Vec<_> = (0..50)
            .map(|_| {
                let (mut program, _) = listener.accept().unwrap();
                thread::spawn(move || {
                    let mut copy = program.try_clone().unwrap();
                    std::io::copy(&mut program, &mut copy).unwrap();
                })
            })
            .collect();
        served.into_iter().for_each(|program| program.join().unwrap());
    });
    let hosts: Vec<_> = (0..50).map(|_| agent.connect_port(port)).collect();
    let talks: Vec<_> = (0u64..)
        .zip(hosts)
        .map(|(number, host)| {
            thread::spawn(move || {
                let said = noise(300_000, 100 + number);
                let heard = thread::spawn({
                    let host = host.try_clone().unwrap();
                    move || read_all(host)
                });
                (&host).write_all(&said).unwrap();
                host.shutdown(Shutdown::Write).unwrap();
                assert!(heard.join().unwrap() == said, "connection {number}");
            })
        })
        .collect();
    talks.into_iter().for_each(|talk| talk.join().unwrap());
    echo.join().unwrap();
    wait_until("all is closed", || agent.open_files() == before);
}

#[test]
fn a_side_that_reads_nothing_stalls_only_its_own_relay() {
    let agent = Agent::start();
    let before = agent.resident();
    let kept: Vec<_> = (0..20)
        .map(|index| {
            let (mut host, mut program) = pair(&agent);
            host.set_nonblocking(true).unwrap();
            program.set_nonblocking(true).unwrap();
            // In one direction or the other, until no more is accepted.
            let writer: &mut dyn Write = if index % 2 == 0 { &mut host } else { &mut program };
            let chunk = vec![7; 1 << 20];
            let mut refusals = 0;
            while refusals < 20 {
                match writer.write(&chunk) {
                    Ok(count) => {
                        assert!(count > 0);
                        refusals = 0;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        refusals += 1;
                        thread::sleep(Duration::from_millis(2));
                    }
                }
            }
            (host, program)
        })
        .collect();
    assert!(agent.resident() < before + 4096, "{} KiB, then {} KiB", before, agent.resident());
    let (mut host, mut program) = pair(&agent);
    host.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    program.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    drop(kept);
    assert!(agent.answers_ping());
}

#[test]
fn the_end_of_one_side_ends_the_other() {
    let agent = Agent::start();
    let before = agent.open_files();
    let (host, mut program) = pair(&agent);
    drop(host);
    assert_eq!(read_all(&mut program), b"");
    // A program that resets the connection, with unread bytes of the host.
    let (mut host, program) = pair(&agent);
    host.write_all(b"unread").unwrap();
    wait_until("they have arrived", || program.peek(&mut [0; 6]).unwrap() == 6);
    drop(program);
    let mut rest = Vec::new();
    // The end of the stream, or an error.
    let _ = host.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    drop(host);
    // During the connection to a program that never accepts.
    let (listener, port) = listener();
    let hosts: Vec<_> = (0..200).map(|_| agent.ask(connect(port))).collect();
    drop(hosts);
    drop(listener);
    wait_until("all is closed", || agent.open_files() == before);
}

#[test]
fn relays_are_limited_and_early_data_are_refused() {
    let agent = Agent::start();
    let (listener, port) = listener();
    let accepting = thread::spawn(move || (0..256).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>());
    let hosts: Vec<_> = (0..256).map(|_| agent.connect_port(port)).collect();
    let programs = accepting.join().unwrap();
    let failure = agent.ask(connect(port)).expect_failure();
    assert_eq!(failure.kind, FailureKind::Resources);
    drop(programs);
    drop(hosts);
    wait_until("there is room again", || {
        agent.ask(connect(closed_port())).expect_failure().kind == FailureKind::ConnectionRefused
    });

    let (listener, port) = self::listener();
    let mut host = agent.greet();
    let mut early = encode(&[connect(port)]);
    early.extend(b"GET /");
    host.send_raw(&early);
    assert_eq!(host.expect_failure().kind, FailureKind::BadRequest);
    drop(listener);
    // On a connection that has a process, and twice.
    let (mut host, _) = agent.start_process(crate::host::command(&["sleep", "60"]));
    host.send(&[connect(port)]);
    assert_eq!(host.expect_failure().kind, FailureKind::BadRequest);
    let mut host = agent.greet();
    host.send(&[HostMessage::Ping]);
    assert_eq!(host.next(), Event::Message(AgentMessage::Pong));
}
