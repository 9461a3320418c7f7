//! A network namespace for one test or benchmark, with an address and servers in it. The namespace is
//! that of the caller's thread, and so of every program that the thread starts.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    thread,
};

/// An address of the namespace. It is from a block for documentation, so it is below the floor.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Moves this thread into a new network namespace with [`SERVER`]. Returns false for users that may
/// not make one.
///
/// # Panics
/// Panics if the namespace cannot be made.
#[must_use]
pub fn enter() -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    // SAFETY: only CLONE_NEWNET is set, which changes the network of this thread and nothing that
    // it shares with other threads.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("a network namespace");
    for arguments in ["link set lo up".to_owned(), format!("address add {SERVER}/32 dev lo")] {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip is installed");
        assert!(status.success(), "ip {arguments}");
    }
    true
}

/// Serves HTTP on port 80 of [`SERVER`]: each response names the host of the request.
///
/// # Panics
/// Panics if the port is in use.
pub fn serve_http() {
    let listener = TcpListener::bind((SERVER, 80)).expect("port 80 of the namespace");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
            let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let host = head.iter().find_map(|line| line.strip_prefix("Host: ")).unwrap_or("none");
            let body = format!("hello from {host}\n");
            let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
}

/// Serves DNS on the loopback address: every name has the address [`SERVER`]. Returns where it listens.
///
/// # Panics
/// Panics if there is no port.
#[must_use]
pub fn serve_dns() -> SocketAddr {
    serve_dns_at((Ipv4Addr::LOCALHOST, 0))
}

/// As [`serve_dns`], at this address.
///
/// # Panics
/// Panics if the port is in use.
pub fn serve_dns_at(address: (Ipv4Addr, u16)) -> SocketAddr {
    let socket = UdpSocket::bind(address).expect("a port of the namespace");
    let address = socket.local_addr().expect("an address");
    thread::spawn(move || {
        let mut query = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let query = &query[..length];
            let labels = query[12..].iter().position(|byte| *byte == 0).expect("a name");
            let question = &query[12..12 + labels + 5];
            let is_address = question[labels + 1..labels + 3] == [0, 1];
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
            answer.extend(question);
            if is_address {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(SERVER.octets());
            }
            let _ = socket.send_to(&answer, client);
        }
    });
    address
}
