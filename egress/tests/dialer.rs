//! What an egress process that was taken over gets from its dialer: the real dialer, in a network namespace that is the
//! host's, with another one that is the internet.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod internet;

use internet::{HOST, Internet, NEIGHBOUR, ROUTED_HERE, dialer::Dialer};
use rustix::{fs::OFlags, io::FdFlags, net::sockopt};
use sandboxvm_egress::packets::{self, PacketError};
use sandboxvm_protocol::egress::{Dial, DialAnswer, DialFailure, DialRequest, DialerSettings};
use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// Everything listens on it, so that a connection that is not forbidden is made.
const PORT: u16 = 4444;

fn send(requests: &OwnedFd, id: u32, dial: Dial) {
    rustix::net::send(requests, &DialRequest { id, dial }.to_bytes(), rustix::net::SendFlags::empty()).unwrap();
}

fn receive(requests: &OwnedFd) -> (u32, Result<OwnedFd, DialFailure>) {
    let mut bytes = [0; 8];
    let mut packet = packets::receive(requests, &mut bytes).unwrap();
    assert_eq!(packet.bytes, 8, "the dialer has ended");
    let answer = DialAnswer::from_bytes(&bytes).unwrap();
    assert_eq!(answer.result.is_ok(), packet.fds.len() == 1);
    (answer.id, answer.result.map(|()| packet.fds.remove(0)))
}

fn dial(requests: &OwnedFd, dial: Dial) -> Result<OwnedFd, DialFailure> {
    send(requests, 7, dial);
    let (id, result) = receive(requests);
    assert_eq!(id, 7);
    result
}

fn listen_everywhere() {
    let v4 = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let v6 = [TcpListener::bind(("::1", PORT)), TcpListener::bind(("fd00:1::1", PORT))].map(Result::unwrap);
    for listener in [v4].into_iter().chain(v6) {
        thread::spawn(move || listener.incoming().flatten().for_each(drop));
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn nothing_below_the_floor_is_dialled() {
    let Some(internet) = Internet::new() else { return };
    listen_everywhere();
    internet.run(|| {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        thread::spawn(move || listener.incoming().flatten().for_each(drop));
    });
    // Each of these is there: without the floor the connection is made.
    for there in ["127.0.0.1", HOST, NEIGHBOUR, ROUTED_HERE, "10.9.9.9", "169.254.169.254", "1.1.1.1", "::1"] {
        TcpStream::connect_timeout(&(address(there), PORT).into(), Duration::from_secs(5)).expect(there);
    }
    let (_dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    for below in [
        "127.0.0.1",
        "127.0.0.2",
        "0.0.0.0",
        "::1",
        "::",
        HOST,
        NEIGHBOUR,
        "192.0.2.77",
        ROUTED_HERE,
        "fd00:1::1",
        "10.9.9.9",
        "169.254.169.254",
        "255.255.255.255",
        "192.0.2.255",
        "224.0.0.1",
        "fe80::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:192.0.2.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::10.9.9.9",
        "64:ff9b::5.5.1.2",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2606:4700::5efe:7f00:1",
    ] {
        let below = address(below);
        for what in [Dial::Tcp(below, PORT), Dial::Udp(below, PORT), Dial::Echo(below)] {
            assert_eq!(dial(&requests, what).unwrap_err(), DialFailure::Forbidden, "{what:?}");
        }
    }
    for what in [Dial::Tcp(address("1.1.1.1"), 0), Dial::Udp(address("1.1.1.1"), 0), Dial::HostPort(PORT)] {
        assert_eq!(dial(&requests, what).unwrap_err(), DialFailure::Forbidden, "{what:?}");
    }
    assert!(dial(&requests, Dial::Tcp(address("1.1.1.1"), PORT)).is_ok());
    assert!(dial(&requests, Dial::Tcp(address("64:ff9b::1.1.1.1"), PORT)).is_ok());
    // An address that the host gets while the dialer runs is the host's.
    internet::ip("addr add 203.1.2.3/24 dev h0");
    assert_eq!(dial(&requests, Dial::Tcp(address("203.1.2.3"), PORT)).unwrap_err(), DialFailure::Forbidden);
    thread::sleep(Duration::from_secs(4));
    assert_eq!(dial(&requests, Dial::Tcp(address("203.1.2.99"), PORT)).unwrap_err(), DialFailure::Forbidden);
}

#[test]
fn a_network_that_is_opened_does_not_open_the_host() {
    let Some(internet) = Internet::new() else { return };
    listen_everywhere();
    internet.run(|| {
        let listener = TcpListener::bind((NEIGHBOUR, PORT)).unwrap();
        thread::spawn(move || listener.incoming().flatten().for_each(drop));
    });
    for (opened, reached, refused) in [
        (&["192.0.2.0/24"][..], &[NEIGHBOUR][..], &[HOST, ROUTED_HERE, "127.0.0.1"][..]),
        (&["0.0.0.0/0", "::/0"], &[NEIGHBOUR], &[HOST, ROUTED_HERE, "127.0.0.1", "::1", "fd00:1::1", "0.0.0.0"]),
        (&["192.0.2.1/32", "127.0.0.1/32"], &[HOST], &[NEIGHBOUR, "127.0.0.1"]),
    ] {
        let (_dialer, requests) = Dialer::start(opened, &[], DialerSettings::default());
        for to in reached {
            assert!(dial(&requests, Dial::Tcp(address(to), PORT)).is_ok(), "{opened:?} {to}");
        }
        for to in refused {
            let what = Dial::Tcp(address(to), PORT);
            assert_eq!(dial(&requests, what).unwrap_err(), DialFailure::Forbidden, "{opened:?} {to}");
        }
    }
}

#[test]
fn sockets_are_handed_over_connected() {
    let Some(internet) = Internet::new() else { return };
    internet.run(|| {
        for at in ["1.1.1.1", "2606:4700::1"] {
            let listener = TcpListener::bind((at, PORT)).unwrap();
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    stream.write_all(b"tcp").unwrap();
                }
            });
            let socket = UdpSocket::bind((at, PORT)).unwrap();
            thread::spawn(move || {
                let mut bytes = [0; 10];
                while let Ok((count, from)) = socket.recv_from(&mut bytes) {
                    socket.send_to(&bytes[..count], from).unwrap();
                }
            });
        }
    });
    let (_dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    for at in ["1.1.1.1", "2606:4700::1"] {
        let socket = dial(&requests, Dial::Tcp(address(at), PORT)).unwrap();
        assert!(rustix::fs::fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&socket).unwrap().contains(FdFlags::CLOEXEC));
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
        let mut stream = TcpStream::from(socket);
        stream.set_nonblocking(false).unwrap();
        let mut said = [0; 3];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"tcp");
        let socket = dial(&requests, Dial::Udp(address(at), PORT)).unwrap();
        assert!(rustix::fs::fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        let socket = UdpSocket::from(socket);
        socket.set_nonblocking(false).unwrap();
        socket.send(b"udp").unwrap();
        socket.recv(&mut said).unwrap();
        assert_eq!(&said, b"udp");
        let socket = UdpSocket::from(dial(&requests, Dial::Echo(address(at))).unwrap());
        socket.set_nonblocking(false).unwrap();
        let kind = if at.contains(':') { [128, 129] } else { [8, 0] };
        socket.send(&[kind[0], 0, 0, 0, 0, 0, 0, 1, b'x']).unwrap();
        let mut echo = [0; 20];
        assert_eq!(socket.recv(&mut echo).unwrap(), 9);
        assert_eq!((echo[0], echo[8]), (kind[1], b'x'));
    }
}

#[test]
fn a_dialer_of_an_ordinary_user_dials_too() {
    let Some(internet) = Internet::new() else { return };
    listen_everywhere();
    let _listener = internet.run(|| TcpListener::bind(("1.1.1.1", PORT)).unwrap());
    let (dialer, requests) = Dialer::start_as(65_533, &[], &[], DialerSettings::default());
    for what in
        [Dial::Tcp(address("1.1.1.1"), PORT), Dial::Udp(address("2606:4700::1"), 53), Dial::Echo(address("1.1.1.1"))]
    {
        assert!(dial(&requests, what).is_ok(), "{what:?}");
    }
    assert_eq!(dial(&requests, Dial::Tcp(address(HOST), PORT)).unwrap_err(), DialFailure::Forbidden);
    let links = |name: &str| {
        ["self", &dialer.process.id().to_string()]
            .map(|pid| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap())
    };
    // Of all namespaces, it has the network of the thread that started it.
    for name in ["user", "mnt", "ipc", "uts", "cgroup"] {
        let [own, dialers] = links(name);
        assert_ne!(own, dialers, "{name}");
    }
}

#[test]
fn failures_are_reported_as_what_they_are() {
    let Some(_internet) = Internet::new() else { return };
    let (_dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    for (to, failure) in [
        ("1.1.1.1", DialFailure::Refused),
        ("2606:4700::1", DialFailure::Refused),
        ("7.7.7.7", DialFailure::Unreachable),
    ] {
        assert_eq!(dial(&requests, Dial::Tcp(address(to), PORT)).unwrap_err(), failure, "{to}");
    }
    internet::ip("-6 route del default");
    assert_eq!(dial(&requests, Dial::Tcp(address("2606:4700::1"), 1)).unwrap_err(), DialFailure::Unreachable);
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "1 0").unwrap();
    assert_eq!(dial(&requests, Dial::Echo(address("1.1.1.1"))).unwrap_err(), DialFailure::Unsupported);
}

#[test]
fn only_listed_ports_of_the_host_are_dialled() {
    let Some(_internet) = Internet::new() else { return };
    let both = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
    let v6_only = TcpListener::bind(("::1", PORT + 1)).unwrap();
    let unlisted = TcpListener::bind(("127.0.0.1", PORT + 2)).unwrap();
    let settings = DialerSettings { host_ports: vec![PORT, PORT + 1, PORT + 3], ..DialerSettings::default() };
    let (dialer, requests) = Dialer::start(&[], &[], settings);
    for (listener, port) in [(&both, PORT), (&v6_only, PORT + 1)] {
        dial(&requests, Dial::HostPort(port)).unwrap();
        listener.accept().unwrap();
    }
    assert_eq!(dial(&requests, Dial::HostPort(PORT + 2)).unwrap_err(), DialFailure::Forbidden);
    assert_eq!(dial(&requests, Dial::HostPort(PORT + 3)).unwrap_err(), DialFailure::Refused);
    dialer.configure(DialerSettings { host_ports: vec![PORT + 2], ..DialerSettings::default() });
    assert_eq!(dial(&requests, Dial::HostPort(PORT)).unwrap_err(), DialFailure::Forbidden);
    dial(&requests, Dial::HostPort(PORT + 2)).unwrap();
    unlisted.accept().unwrap();
}

#[test]
fn what_is_not_a_request_ends_the_dialer() {
    let Some(_internet) = Internet::new() else { return };
    let good = DialRequest { id: 1, dial: Dial::HostPort(1) }.to_bytes();
    let unknown = [9; 24];
    for bytes in [&[1][..], &good[..23], &[&good[..], &[0]].concat(), &unknown, &[0; 4096]] {
        let (dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
        rustix::net::send(&requests, bytes, rustix::net::SendFlags::empty()).unwrap();
        assert!(matches!(packets::receive(&requests, &mut [0; 8]), Ok(packet) if packet.bytes == 0));
        assert_eq!(dialer.wait().code(), Some(125));
    }
    let (dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    packets::send_with(&requests, &good, Some(&requests.as_fd().try_clone_to_owned().unwrap())).unwrap();
    assert_eq!(dialer.wait().code(), Some(125));
}

#[test]
fn a_dialer_ends_with_its_supervisor_and_with_its_egress_process() {
    let Some(_internet) = Internet::new() else { return };
    let (dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    drop(requests);
    assert_eq!(dialer.wait().code(), Some(0));
    let (mut dialer, _requests) = Dialer::start(&[], &[], DialerSettings::default());
    dialer.supervisor = internet::dialer::pair().0;
    assert_eq!(dialer.wait().code(), Some(0));
}

#[test]
fn an_egress_process_that_reads_no_answers_takes_bounded_memory() {
    let Some(_internet) = Internet::new() else { return };
    let (dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    rustix::io::ioctl_fionbio(&requests, true).unwrap();
    let request = |id| DialRequest { id, dial: Dial::Udp(address("1.1.1.1"), 53) }.to_bytes();
    let (mut sent, mut quiet) = (0, 0);
    while quiet < 20 {
        match rustix::net::send(&requests, &request(sent), rustix::net::SendFlags::empty()) {
            Ok(_) => (sent, quiet) = (sent + 1, 0),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                quiet += 1;
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
    assert!(sent < 2000, "{sent}");
    let pid = dialer.process.id();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(descriptors < 64, "{descriptors}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
    // All of them are answered once they are read.
    rustix::io::ioctl_fionbio(&requests, false).unwrap();
    for id in 0..sent {
        assert_eq!(receive(&requests).0, id);
    }
    let idle = |what: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let ticks: Vec<u64> = stat.split(' ').skip(13).take(2).map(|ticks| ticks.parse().unwrap()).collect();
        println!("{what}: {ticks:?}");
        ticks
    };
    let before = idle("ticks");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(idle("half a second later"), before);
}

#[test]
fn at_most_256_are_dialled_and_none_for_longer_than_ten_seconds() {
    let Some(internet) = Internet::new() else { return };
    // A listener whose queue is full answers no further connection.
    let _full = internet.run(|| {
        let listener = TcpListener::bind(("1.1.1.1", PORT)).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let waiting = TcpStream::connect(("1.1.1.1", PORT)).unwrap();
        (listener, waiting)
    });
    let (_dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    let begun = Instant::now();
    let mut failures = Vec::new();
    let mut receive_failure = || {
        let (_, result) = receive(&requests);
        failures.push((begun.elapsed().as_secs(), result.unwrap_err()));
    };
    for id in 0..300 {
        send(&requests, id, Dial::Tcp(address("1.1.1.1"), PORT));
    }
    for _ in 0..300 {
        receive_failure();
    }
    let busy = failures.iter().filter(|(seconds, failure)| *seconds < 5 && *failure == DialFailure::Busy).count();
    let timed_out = failures
        .iter()
        .filter(|(seconds, failure)| (10..13).contains(seconds) && *failure == DialFailure::TimedOut)
        .count();
    assert_eq!((busy, timed_out), (44, 256), "{failures:?}");
    // There is room again.
    assert_eq!(dial(&requests, Dial::Tcp(address("1.1.1.1"), PORT + 1)).unwrap_err(), DialFailure::Refused);
}

#[test]
fn any_requests_of_the_right_size_are_answered_or_end_the_dialer() {
    let Some(_internet) = Internet::new() else { return };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let (_dialer, requests) = Dialer::start(&[], &[], DialerSettings::default());
    let mut answered = 0;
    for _ in 0..3000 {
        let mut bytes: [u8; 24] = [random(), random(), random()].concat().try_into().unwrap();
        // A kind that exists, and never TCP to any address, which takes long.
        bytes[4] = 2 + bytes[4] % 5;
        rustix::net::send(&requests, &bytes, rustix::net::SendFlags::empty()).unwrap();
        match packets::receive(&requests, &mut bytes[..8]) {
            Ok(packet) if packet.bytes == 8 => answered += 1,
            Ok(_) | Err(PacketError::Socket(_)) => panic!("the dialer has ended"),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(answered, 3000);
}
