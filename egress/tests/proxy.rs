//! Connections through an upstream proxy: the real dialer with Debian's proxies in the internet, with hostile ones, and with the
//! real egress process in front of it.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;
mod internet;

use common::{
    in_namespace,
    sandbox::{Sandbox, Setup, public},
};
use internet::{HOST, Internet, NEIGHBOUR, dialer::Dialer, proxies::Proxy};
use sandboxvm_egress::packets;
use sandboxvm_protocol::egress::{
    Decided, Dial, DialAnswer, DialFailure, DialRequest, ProxyLogin, ProxyProtocol, UpstreamProxy,
};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 4444;
const SERVER: &str = "1.1.1.1";
const PROXY: &str = "9.9.9.9:1080";

fn proxy(protocol: ProxyProtocol, at: &str, login: Option<(&str, &str)>) -> UpstreamProxy {
    let login = login.map(|(user, password)| ProxyLogin { user: user.into(), password: password.into() });
    UpstreamProxy { protocol, address: at.parse().unwrap(), login, is_operators: false }
}

fn socks(at: &str) -> UpstreamProxy {
    proxy(ProxyProtocol::Socks5, at, None)
}

fn dial(requests: &OwnedFd, what: Dial) -> Result<OwnedFd, DialFailure> {
    let request = DialRequest { id: 7, dial: what }.to_bytes();
    rustix::net::send(requests, &request, rustix::net::SendFlags::empty()).unwrap();
    let mut bytes = [0; 8];
    let mut packet = packets::receive(requests, &mut bytes).unwrap();
    assert_eq!(packet.bytes, 8, "the dialer has ended");
    DialAnswer::from_bytes(&bytes).unwrap().result.map(|()| packet.fds.remove(0))
}

fn to(address: &str, port: u16) -> Dial {
    Dial::Tcp(address.parse().unwrap(), port)
}

/// A server that speaks first.
fn greet(at: &str) {
    let listener = TcpListener::bind((at.parse::<IpAddr>().unwrap(), PORT)).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A guest may be gone.
            let _ = stream.write_all(b"hello");
        }
    });
}

/// What comes first on a socket, and where it leads.
fn hear(socket: OwnedFd) -> (Vec<u8>, SocketAddr) {
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    let mut said = vec![0; 5];
    stream.read_exact(&mut said).unwrap();
    (said, stream.peer_addr().unwrap())
}

#[test]
fn connections_are_made_by_the_proxy_alone() {
    let Some(internet) = Internet::new() else { return };
    let at: SocketAddr = PROXY.parse().unwrap();
    let _proxies = internet.run(move || {
        greet(SERVER);
        greet("2606:4700::1");
        greet("10.9.9.9");
        let port = |port| SocketAddr::new(at.ip(), port);
        (Proxy::socks(at, None), Proxy::socks(port(1081), Some("hush")), Proxy::http(port(8888), "hush"))
    });
    // The host itself reaches the proxies and nothing else.
    internet::ip("route del default");
    internet::ip("-6 route del default");
    internet::ip("route add 9.9.9.9 via 192.0.2.2");
    let login = Some(("me", "hush"));
    for proxy in [
        socks(PROXY),
        proxy(ProxyProtocol::Socks5, PROXY, login),
        proxy(ProxyProtocol::Socks5, "9.9.9.9:1081", login),
        proxy(ProxyProtocol::Http, "9.9.9.9:8888", login),
    ] {
        let (_dialer, requests) = Dialer::start_with(proxy.clone());
        for server in [SERVER, "2606:4700::1"] {
            let (said, peer) = hear(dial(&requests, to(server, PORT)).unwrap());
            assert_eq!((&said[..], peer), (&b"hello"[..], proxy.address), "{proxy:?} {server}");
        }
        // The proxy would reach it.
        for below in ["10.9.9.9", HOST, NEIGHBOUR, "127.0.0.1"] {
            assert_eq!(dial(&requests, to(below, PORT)).unwrap_err(), DialFailure::Forbidden, "{proxy:?} {below}");
        }
        let server = SERVER.parse().unwrap();
        for around in [Dial::Udp(server, 443), Dial::Echo(server)] {
            assert_eq!(dial(&requests, around).unwrap_err(), DialFailure::NotProxied);
        }
        let refused = dial(&requests, to(SERVER, PORT + 1)).unwrap_err();
        let expected = if proxy.protocol == ProxyProtocol::Socks5 { DialFailure::Refused } else { DialFailure::Proxy };
        assert_eq!(refused, expected, "{proxy:?}");
    }
    for (wrong, failure) in [
        (socks("9.9.9.9:1081"), DialFailure::ProxyLogin),
        (proxy(ProxyProtocol::Socks5, "9.9.9.9:1081", Some(("me", "other"))), DialFailure::ProxyLogin),
        (proxy(ProxyProtocol::Http, "9.9.9.9:8888", Some(("me", "other"))), DialFailure::ProxyLogin),
        // Nothing listens there, no route leads there, and it is another kind of proxy.
        (socks("9.9.9.9:1"), DialFailure::ProxyUnreachable),
        (socks("8.8.8.8:1080"), DialFailure::ProxyUnreachable),
        (proxy(ProxyProtocol::Http, PROXY, None), DialFailure::Proxy),
    ] {
        let (_dialer, requests) = Dialer::start_with(wrong.clone());
        assert_eq!(dial(&requests, to(SERVER, PORT)).unwrap_err(), failure, "{wrong:?}");
    }
}

#[test]
fn only_the_operators_proxy_may_be_below_the_floor() {
    let Some(internet) = Internet::new() else { return };
    let _proxies = internet.run(|| {
        greet(SERVER);
        (Proxy::socks(SocketAddr::new(NEIGHBOUR.parse().unwrap(), 1080), None),)
    });
    let at = format!("{NEIGHBOUR}:1080");
    let (_dialer, requests) = Dialer::start_with(UpstreamProxy { is_operators: true, ..socks(&at) });
    assert_eq!(hear(dial(&requests, to(SERVER, PORT)).unwrap()).0, b"hello");
    for below in [&at[..], "127.0.0.1:1080", "[::ffff:10.9.9.9]:1080", "[::1]:1080"] {
        let (_dialer, requests) = Dialer::start_with(socks(below));
        assert_eq!(dial(&requests, to(SERVER, PORT)).unwrap_err(), DialFailure::ProxyForbidden, "{below}");
    }
}

#[test]
fn hostile_proxies_get_ten_seconds_and_delay_no_other_dial() {
    let Some(internet) = Internet::new() else { return };
    internet.run(|| {
        let listen = |port| TcpListener::bind(("9.9.9.9", port)).unwrap();
        let (silent, trickling, flooding) = (listen(1), listen(2), listen(3));
        thread::spawn(move || silent.incoming().flatten().collect::<Vec<_>>());
        thread::spawn(move || {
            for mut stream in trickling.incoming().flatten() {
                thread::spawn(move || {
                    while stream.write_all(b"x").is_ok() {
                        thread::sleep(Duration::from_millis(20));
                    }
                });
            }
        });
        thread::spawn(move || {
            for mut stream in flooding.incoming().flatten() {
                thread::spawn(move || while stream.write_all(&[b'x'; 1 << 16]).is_ok() {});
            }
        });
    });
    let http = |port: u16| proxy(ProxyProtocol::Http, &format!("9.9.9.9:{port}"), None);
    let waits: Vec<_> =
        [(http(1), true), (http(2), true), (http(3), false), (socks("9.9.9.9:1"), true), (socks("9.9.9.9:3"), false)]
            .into_iter()
            .map(|(proxy, is_slow)| {
                let (dialer, requests) = Dialer::start_with(proxy.clone());
                let begun = Instant::now();
                // In turn, so that all of them are under way.
                let request = DialRequest { id: 7, dial: to(SERVER, PORT) }.to_bytes();
                rustix::net::send(&requests, &request, rustix::net::SendFlags::empty()).unwrap();
                (proxy, is_slow, dialer, requests, begun)
            })
            .collect();
    for (proxy, is_slow, _, requests, _) in &waits {
        if *is_slow {
            // Another request is answered meanwhile.
            assert_eq!(dial_with(requests, 8, Dial::HostPort(1)), (8, Some(DialFailure::Forbidden)), "{proxy:?}");
        }
    }
    for (proxy, is_slow, dialer, requests, begun) in waits {
        let (id, failure) = receive(&requests);
        let took = begun.elapsed();
        let expected = if is_slow { DialFailure::TimedOut } else { DialFailure::Proxy };
        assert_eq!((id, failure), (7, Some(expected)), "{proxy:?}");
        assert!(!is_slow || took.as_secs() >= 9, "{proxy:?} {took:?}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", dialer.process.id())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        assert!(size.unwrap().parse::<u64>().unwrap() < 16 << 10, "{size:?}");
    }
}

fn dial_with(requests: &OwnedFd, id: u32, what: Dial) -> (u32, Option<DialFailure>) {
    let request = DialRequest { id, dial: what }.to_bytes();
    rustix::net::send(requests, &request, rustix::net::SendFlags::empty()).unwrap();
    receive(requests)
}

fn receive(requests: &OwnedFd) -> (u32, Option<DialFailure>) {
    let mut bytes = [0; 8];
    assert_eq!(packets::receive(requests, &mut bytes).unwrap().bytes, 8, "the dialer has ended");
    let answer = DialAnswer::from_bytes(&bytes).unwrap();
    (answer.id, answer.result.err())
}

#[test]
fn guest_behind_a_proxy_has_tcp_and_is_refused_the_rest_with_that_reason() {
    if !in_namespace("guest_behind_a_proxy_has_tcp_and_is_refused_the_rest_with_that_reason") {
        return;
    }
    let at: SocketAddr = "198.51.100.4:1080".parse().unwrap();
    let _proxy = Proxy::socks(at, None);
    let server: SocketAddr = SocketAddr::from(([198, 51, 100, 1], PORT));
    let listener = TcpListener::bind(server).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut said = [0; 4];
            stream.read_exact(&mut said).unwrap();
            stream.write_all(&said).unwrap();
        }
    });
    let datagrams = UdpSocket::bind(server).unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let proxy = UpstreamProxy { is_operators: true, ..socks(&at.to_string()) };
    let (mut sandbox, mut guest) = Sandbox::start(Setup { proxy: Some(proxy), ..Setup::from(public()) });
    let tcp = guest.connect(server).unwrap();
    guest.send(tcp, b"ping").unwrap();
    assert_eq!(guest.read_exact(tcp, 4).unwrap(), b"ping");
    guest.close(tcp);
    guest.closed(tcp);
    assert!(matches!(sandbox.flow().decided, Decided::Allowed(_)));
    let udp = guest.udp();
    guest.send_to(udp, b"around", server);
    let record = sandbox.flow();
    let Decided::Refused { reason, rule: None } = record.decided else { panic!("{record:?}") };
    assert_eq!(reason, DialFailure::NotProxied.to_string());
    assert!(datagrams.recv(&mut [0; 10]).is_err(), "nothing went around the proxy");
}

#[test]
fn guest_reaches_nothing_directly_while_its_proxy_fails() {
    if !in_namespace("guest_reaches_nothing_directly_while_its_proxy_fails") {
        return;
    }
    let server = SocketAddr::from(([198, 51, 100, 1], PORT));
    let listener = TcpListener::bind(server).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (down, wants_login): (SocketAddr, SocketAddr) =
        ("198.51.100.4:1".parse().unwrap(), "198.51.100.4:1080".parse().unwrap());
    let _proxy = Proxy::socks(wants_login, Some("hush"));
    for (at, failure) in [(down, DialFailure::ProxyUnreachable), (wants_login, DialFailure::ProxyLogin)] {
        let proxy = UpstreamProxy { is_operators: true, ..socks(&at.to_string()) };
        let (mut sandbox, mut guest) = Sandbox::start(Setup { proxy: Some(proxy), ..Setup::from(public()) });
        guest.connect(server).unwrap_err();
        let Decided::Refused { reason, rule: None } = sandbox.flow().decided else { panic!("{at}") };
        assert_eq!(reason, failure.to_string());
        // The floor is looked at before the proxy.
        for below in ["169.254.169.254", "127.0.0.1", "10.0.0.1"] {
            guest.connect(SocketAddr::new(below.parse().unwrap(), 80)).unwrap_err();
            let Decided::Refused { reason, .. } = sandbox.flow().decided else { panic!("{below}") };
            assert!(reason.starts_with("it is "), "{below} {reason}");
        }
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nothing went around the proxy");
}
