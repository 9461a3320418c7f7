//! Hosts that violate the protocol, or use all of it.

use crate::host::{Agent, Event, command, encode, hello, noise, script};
use sandboxvm_protocol::agent::{
    AgentMessage, ExitStatus, FailureKind, GuestIdentity, HostMessage, MAX_HOST_MESSAGE, SignalNumber, WIRE,
};
use sandboxvm_protocol::frame::{FrameKind, MAX_STREAM_BODY};
use sandboxvm_protocol::ids::SandboxName;

#[test]
fn a_request_may_come_byte_by_byte() {
    let agent = Agent::start();
    let mut host = agent.connect();
    for byte in encode(&[hello(), HostMessage::Exec(script("echo whole"))]) {
        host.send_raw(&[byte]);
    }
    assert_eq!(host.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));
    assert!(matches!(host.next(), Event::Message(AgentMessage::Started { .. })));
    assert_eq!(host.finish().text(), "whole\n");
}

#[test]
fn requests_are_handled_in_order() {
    let agent = Agent::start();
    let mut host = agent.connect();
    host.send(&[hello(), HostMessage::Ping, HostMessage::Ping, HostMessage::Exec(script("exit 9"))]);
    assert_eq!(host.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));
    assert_eq!(host.next(), Event::Message(AgentMessage::Pong));
    assert_eq!(host.next(), Event::Message(AgentMessage::Pong));
    assert!(matches!(host.next(), Event::Message(AgentMessage::Started { .. })));
    assert_eq!(host.finish().status, ExitStatus::Code(9));
}

#[test]
fn a_version_the_agent_does_not_speak_is_refused() {
    let agent = Agent::start();
    let newer = WIRE.version + 1;
    let mut host = agent.connect();
    host.send(&[HostMessage::Hello { oldest: newer, newest: newer + 3 }]);
    assert_eq!(host.expect_failure().kind, FailureKind::UnsupportedVersion);

    let mut host = agent.connect();
    host.send(&[HostMessage::Hello { oldest: WIRE.oldest, newest: newer + 3 }]);
    assert_eq!(host.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));

    let mut host = agent.connect();
    let mut frame = encode(&[hello()]);
    frame[2] = newer;
    host.send_raw(&frame);
    assert_eq!(host.expect_failure().kind, FailureKind::UnsupportedVersion);
}

#[test]
fn invalid_messages_are_refused() {
    let agent = Agent::start();
    let sleep = || HostMessage::Exec(command(&["sleep", "1000"]));
    let mut no_program = command(&[]);
    no_program.argv.clear();
    let mut stdin = encode(&[hello()]);
    stdin.extend(WIRE.header(FrameKind::Stdin, 1).unwrap());
    stdin.push(b'x');
    let mut stdout = encode(&[hello()]);
    stdout.extend(WIRE.header(FrameKind::Stdout, 0).unwrap());
    let cases = [
        ("no Hello", encode(&[HostMessage::Ping])),
        ("two Hellos", encode(&[hello(), hello()])),
        ("a process before Hello", encode(&[sleep()])),
        ("two processes", encode(&[hello(), sleep(), sleep()])),
        ("no program", encode(&[hello(), HostMessage::Exec(no_program)])),
        ("a signal without a process", encode(&[hello(), HostMessage::Signal(SignalNumber::TERM)])),
        ("stdin without a process", stdin),
        ("stdout from the host", stdout),
    ];
    for (what, bytes) in cases {
        let mut host = agent.connect();
        host.send_raw(&bytes);
        assert_eq!(host.expect_failure().kind, FailureKind::BadRequest, "{what}");
    }
    assert!(agent.answers_ping());
}

#[test]
fn an_agent_that_is_not_pid_1_does_not_change_the_machine() {
    let agent = Agent::start();
    let mut host = agent.greet();
    host.send(&[HostMessage::SetIdentity(GuestIdentity {
        wall_clock_ns: 0,
        entropy: [0; 32],
        hostname: SandboxName::try_from("never-set".to_owned()).unwrap(),
        machine_id: [0; 16],
    })]);
    assert_eq!(host.expect_failure().kind, FailureKind::BadRequest);
    assert_ne!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "never-set");
}

#[test]
fn garbage_is_refused_and_harms_no_other_connection() {
    let agent = Agent::start();
    let (mut bystander, _) = agent.start_process(script("echo before; sleep 0.5; echo after"));
    bystander.read_until("before");
    let header = |kind: u8, len: u32| {
        let [l0, l1, l2, l3] = len.to_le_bytes();
        [b'S', b'A', WIRE.version, kind, l0, l1, l2, l3]
    };
    let over = |cap: usize| u32::try_from(cap + 1).unwrap();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise(5000, 99)),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("the other wire", b"SC\x01\x01\0\0\0\0".to_vec()),
        ("an unknown kind", header(0x7f, 0).to_vec()),
        ("a message over its cap", header(0x01, over(MAX_HOST_MESSAGE)).to_vec()),
        ("the longest length", header(0x01, u32::MAX).to_vec()),
        ("stdin over its cap", header(0x10, over(MAX_STREAM_BODY)).to_vec()),
        ("an empty message", header(0x01, 0).to_vec()),
        ("an unknown message", [&header(0x01, 1)[..], &[0x7f]].concat()),
        ("a message with something after it", [&header(0x01, 2)[..], &[1, 1]].concat()),
    ];
    for (what, bytes) in cases {
        let mut host = agent.connect();
        host.send_raw(&bytes);
        assert_eq!(host.expect_failure().kind, FailureKind::BadRequest, "{what}");
    }
    // Also on a connection that was valid so far.
    let (mut host, pid) = agent.start_process(command(&["sleep", "1000"]));
    host.send_raw(&noise(100, 5));
    assert_eq!(host.expect_failure().kind, FailureKind::BadRequest);
    crate::host::wait_until("its process is gone", || !crate::host::exists(pid));
    // Frames that are never completed.
    for len in [1, 7, 8, 20] {
        let mut host = agent.connect();
        host.send_raw(&encode(&[hello(), HostMessage::Exec(script("true"))])[..len]);
    }
    assert_eq!(bystander.finish().text().trim(), "after");
    assert!(agent.answers_ping());
}
