//! Listeners over real sockets: what clients without requests, and upgraded connections, take from others.

use super::*;
use crate::sandbox_plane::tunnel;
use axum::{
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const SOON: Duration = Duration::from_millis(300);
/// Ends a test that hangs.
const HANG: Duration = Duration::from_secs(60);

struct Listener {
    address: SocketAddr,
    ending: CancellationToken,
    tracker: TaskTracker,
}

async fn listener(limits: Limits) -> Listener {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    // Upgrades to an echo that ends when nothing moved for an hour.
    let upgrade = async |mut request: Request| {
        let (client, holds) = (hyper::upgrade::on(&mut request), tunnel::Holds::of(request.extensions()));
        tokio::spawn(async move {
            let (near, far) = duplex(64);
            let (mut read, mut write) = tokio::io::split(far);
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
            tunnel::carry(TokioIo::new(client.await.unwrap()), near, Duration::from_secs(3600), holds).await;
        });
        (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")]).into_response()
    };
    let router = Router::new().route("/", get(async || "here")).route("/upgrade", get(upgrade));
    let (ending, tracker) = (CancellationToken::new(), TaskTracker::new());
    tokio::spawn(accept(socket, router, limits, (None, ending.clone(), tracker.clone())));
    Listener { address, ending, tracker }
}

async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// All that comes until the server closes the connection.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A connection that the server closes while the client still sends is reset.
    let _ = timeout(HANG, stream.read_to_end(&mut bytes)).await.expect("the connection is closed");
    bytes
}

async fn get_once(address: SocketAddr) -> String {
    let mut stream = send(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    String::from_utf8(rest(&mut stream).await).unwrap()
}

async fn upgraded(address: SocketAddr) -> TcpStream {
    let head = b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    let mut stream = send(address, head).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(HANG, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_whatever_it_began_with() {
    let limits = Limits { first_request: SOON, idle: SOON, ..limits(10, 10) };
    let server = listener(limits).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for begun in [b"".as_slice(), b"P", b"GET / HT", preface] {
        let mut stream = send(server.address, begun).await;
        let _ = rest(&mut stream).await;
    }
    // One that had a request is closed when it has had none for as long.
    let mut kept = send(server.address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(rest(&mut kept).await.ends_with(b"here"));
}

#[tokio::test]
async fn idle_connections_do_not_lock_clients_out() {
    let server = listener(limits(8, 8)).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    for _ in 0..3 {
        let answer = timeout(HANG, get_once(server.address)).await.expect("a silent client keeps others out");
        assert!(answer.ends_with("here"), "{answer:?}");
    }
}

#[tokio::test]
async fn one_address_has_its_share_of_connections() {
    let server = listener(limits(8, 2)).await;
    let [first, _second] = [upgraded(server.address).await, upgraded(server.address).await];
    assert_eq!(get_once(server.address).await, "");
    drop(first);
    let answered = async {
        while get_once(server.address).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, answered).await.expect("its place is given back");
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place_until_its_end() {
    let server = listener(limits(2, 2)).await;
    let mut open = [upgraded(server.address).await, upgraded(server.address).await];
    assert_eq!(get_once(server.address).await, "", "two are all that there may be");
    for stream in &mut open {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(timeout(HANG, stream.read_u8()).await.unwrap().unwrap(), b'x');
    }
    // The server waits for them, and they end with it.
    server.ending.cancel();
    server.tracker.close();
    timeout(HANG, server.tracker.wait()).await.expect("upgraded connections end with the server");
    for mut stream in open {
        assert_eq!(rest(&mut stream).await, b"");
    }
}
