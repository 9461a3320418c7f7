//! Connections that have to show a name, with the real egress process and dialer, in a network namespace.

#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod common;

use common::{
    guest::{Failed, Guest, Tcp},
    in_namespace,
    sandbox::{Sandbox, Setup, listed, pin},
};
use sandboxvm_protocol::egress::{Decided, FlowEnd, NetworkSettings};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// A server that sends `greeting`, keeps what it reads, and answers each piece by `reply`.
struct Server {
    at: SocketAddr,
    heard: mpsc::Receiver<Vec<u8>>,
}

fn server(port: u16, greeting: &'static [u8], reply: &'static [u8]) -> Server {
    let listener = TcpListener::bind(("198.51.100.1", port)).unwrap();
    let at = listener.local_addr().unwrap();
    let (sender, heard) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender) = (stream.unwrap(), sender.clone());
            thread::spawn(move || {
                stream.write_all(greeting).unwrap();
                let mut buffer = vec![0; 1 << 20];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    sender.send(buffer[..count].to_vec()).unwrap();
                    if stream.write_all(reply).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Server { at, heard }
}

impl Server {
    /// Everything that it heard until nothing came for a while.
    fn heard(&self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Ok(bytes) = self.heard.recv_timeout(Duration::from_millis(300)) {
            all.extend(bytes);
        }
        all
    }
}

fn start(settings: NetworkSettings) -> (Sandbox, Guest) {
    let pins = [pin("a.example", 1), pin("b.example", 1)].concat();
    Sandbox::start(Setup { pins, ..Setup::from(settings) })
}

/// A ClientHello with this server name, in one record.
fn hello(name: &str) -> Vec<u8> {
    let length = |count: usize| u16::try_from(count).unwrap().to_be_bytes();
    let entry = [&[0][..], &length(name.len()), name.as_bytes()].concat();
    let list = [&length(entry.len())[..], &entry].concat();
    let extension = [&[0, 0][..], &length(list.len()), &list].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(length(extension.len()));
    body.extend(extension);
    let message = [&[1, 0][..], &length(body.len()), &body].concat();
    [&[22, 3, 1][..], &length(message.len()), &message].concat()
}

/// Sends in pieces of these sizes, each in a segment to itself.
fn send_pieces(guest: &mut Guest, tcp: Tcp, bytes: &[u8], piece: usize) {
    for bytes in bytes.chunks(piece) {
        guest.send(tcp, bytes).unwrap();
        guest.until(Duration::from_millis(5), |_| None::<()>);
    }
}

#[track_caller]
fn assert_refused(sandbox: &mut Sandbox, name: Option<&str>, reason: &str) {
    let record = sandbox.flow();
    let Decided::Refused { reason: given, .. } = &record.decided else { panic!("{record:?}") };
    assert!(given.contains(reason), "{given}");
    assert_eq!(record.name.as_deref(), name);
}

#[test]
fn tls_passes_with_the_name_that_was_asked_for_and_with_no_other() {
    if !in_namespace("tls_passes_with_the_name_that_was_asked_for_and_with_no_other") {
        return;
    }
    let (mut sandbox, mut guest) = start(listed(&["a.example", "c.example"], &[]));
    let server = server(443, b"", b"answer");
    for piece in [1000, 20] {
        let tcp = guest.connect(server.at).unwrap();
        send_pieces(&mut guest, tcp, &hello("a.example"), piece);
        assert_eq!(guest.read(tcp, 6).unwrap(), b"answer");
        assert!(server.heard() == hello("a.example"));
        guest.abort(tcp);
        let record = sandbox.flow();
        assert_eq!(record.name.as_deref(), Some("a.example"));
        assert_eq!(record.decided, Decided::Allowed(Some("a.example".to_owned())));
    }
    // Allowed, but not asked for; asked for, but not allowed; neither.
    for (name, reason) in [("c.example", "not asked for"), ("b.example", "no rule allows"), ("d.example", "not asked")]
    {
        let tcp = guest.connect(server.at).unwrap();
        guest.send(tcp, &hello(name)).unwrap();
        assert_eq!(guest.read(tcp, 6), Err(Failed::Reset));
        assert!(server.heard().is_empty());
        assert_refused(&mut sandbox, Some(name), reason);
    }
    // No name, another protocol, and half a name.
    for (bytes, reason) in [
        (hello(""), "does not say which host"),
        (b"SSH-2.0-x\r\n".to_vec(), "shows no name"),
        (hello("a.example")[..20].to_vec(), "does not say which host"),
    ] {
        let tcp = guest.connect(server.at).unwrap();
        guest.send(tcp, &bytes).unwrap();
        guest.close(tcp);
        assert_eq!(guest.read(tcp, 6), Err(Failed::Reset));
        assert!(server.heard().is_empty());
        assert_refused(&mut sandbox, None, reason);
    }
}

#[test]
fn every_request_of_an_http_connection_is_checked() {
    if !in_namespace("every_request_of_an_http_connection_is_checked") {
        return;
    }
    let (mut sandbox, mut guest) = start(listed(&["a.example"], &[]));
    let server = server(80, b"", b"HTTP/1.1 204 No Content\r\n\r\n");
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let post = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\nGET / HTT";
    let tcp = guest.connect(server.at).unwrap();
    guest.send(tcp, [&get("a.example"), post, &get("A.example:80"), &get("b.example")].concat().as_bytes()).unwrap();
    while guest.read(tcp, 1000).is_ok() {}
    let heard = String::from_utf8(server.heard()).unwrap();
    assert_eq!(heard, [&get("a.example"), post, &get("A.example:80")].concat());
    assert_refused(&mut sandbox, Some("b.example"), "no rule allows");
    for second in [
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n",
        "\x16\x03\x01",
    ] {
        let tcp = guest.connect(server.at).unwrap();
        guest.send(tcp, get("a.example").as_bytes()).unwrap();
        assert!(!guest.read(tcp, 1000).unwrap().is_empty());
        guest.send(tcp, second.as_bytes()).unwrap();
        assert_eq!(guest.read(tcp, 1000), Err(Failed::Reset), "{second:?}");
        assert_eq!(server.heard(), get("a.example").as_bytes());
        assert_eq!(sandbox.flow().end, FlowEnd::Reset);
    }
}

#[test]
fn a_connection_that_becomes_a_websocket_carries_anything_afterwards() {
    if !in_namespace("a_connection_that_becomes_a_websocket_carries_anything_afterwards") {
        return;
    }
    let (_sandbox, mut guest) = start(listed(&["a.example"], &[]));
    let upgrade = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let frames = b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n";
    let accepts = server(80, b"", b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    let tcp = guest.connect(accepts.at).unwrap();
    // What follows the request immediately waits for the answer.
    guest.send(tcp, &[&upgrade[..], frames].concat()).unwrap();
    assert!(!guest.read(tcp, 1000).unwrap().is_empty());
    assert_eq!(accepts.heard(), [&upgrade[..], frames].concat());

    let declines = server(81, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let tcp = guest.connect(declines.at).unwrap();
    guest.send(tcp, &[&upgrade[..], frames].concat()).unwrap();
    while guest.read(tcp, 1000).is_ok() {}
    assert_eq!(declines.heard(), upgrade);
}

#[test]
fn a_server_speaks_first_only_where_no_name_is_needed() {
    if !in_namespace("a_server_speaks_first_only_where_no_name_is_needed") {
        return;
    }
    let (mut sandbox, mut guest) = start(listed(&["a.example:22", "a.example"], &[]));
    let ssh = server(22, b"SSH-2.0-server\r\n", b"ok");
    let tcp = guest.connect(ssh.at).unwrap();
    let begun = Instant::now();
    assert_eq!(guest.read(tcp, 100).unwrap(), b"SSH-2.0-server\r\n");
    assert!(begun.elapsed() < Duration::from_secs(1));
    guest.send(tcp, b"SSH-2.0-client\r\n").unwrap();
    assert_eq!(guest.read(tcp, 100).unwrap(), b"ok");
    assert_eq!(ssh.heard(), b"SSH-2.0-client\r\n");
    guest.abort(tcp);
    assert_eq!(sandbox.flow().name.as_deref(), None);

    // A client that was silent is still held to the names that it shows.
    let tcp = guest.connect(ssh.at).unwrap();
    assert_eq!(guest.read(tcp, 100).unwrap(), b"SSH-2.0-server\r\n");
    guest.send(tcp, &hello("evil.example")).unwrap();
    assert_eq!(guest.read(tcp, 100), Err(Failed::Reset));
    assert!(ssh.heard().is_empty());
    assert_refused(&mut sandbox, Some("evil.example"), "not asked for");

    // Where the rule names no port, nothing of the server passes, however long the client is silent.
    let other = server(2222, b"hello", b"ok");
    let tcp = guest.connect(other.at).unwrap();
    assert_eq!(guest.read(tcp, 100), Err(Failed::Reset));
    assert_refused(&mut sandbox, None, "shows no name");
    let silent = server(2223, b"", b"ok");
    let tcp = guest.connect(silent.at).unwrap();
    // A guest may be slow to say which host it wants.
    assert_eq!(guest.read(tcp, 100), Err(Failed::Silent));
    guest.send(tcp, &hello("a.example")).unwrap();
    assert_eq!(guest.read(tcp, 100).unwrap(), b"ok");
}

#[test]
fn bodies_of_any_size_and_framing_pass() {
    if !in_namespace("bodies_of_any_size_and_framing_pass") {
        return;
    }
    let (_sandbox, mut guest) = start(listed(&["a.example"], &[]));
    let server = server(80, b"", b"");
    let size = 3_000_000;
    let head = format!("PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {size}\r\n\r\n");
    let tcp = guest.connect(server.at).unwrap();
    let body = vec![b'x'; size];
    guest.send(tcp, head.as_bytes()).unwrap();
    guest.send(tcp, &body).unwrap();
    let mut chunked = b"PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..100 {
        chunked.extend(b"2710;x=y\r\n");
        chunked.extend([b'y'; 10_000]);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\nTrailer: z\r\n\r\n");
    guest.send(tcp, &chunked).unwrap();
    guest.drained(tcp);
    guest.close(tcp);
    guest.rest();
    assert!(server.heard() == [head.as_bytes(), &body, &chunked].concat());
}
