//! Attacks of one key on a server: many connections at the same time, each kept open as long as the
//! server allows, and opened again when the server closes or refuses it. Uses raw HTTP/1.1, as no
//! client library sends half of a request.

use crate::{
    home::{Home, eventually},
    server::Server,
};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use std::{
    fmt::{Display, Write as _},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

/// Source address of the attacker's connections, which differs from that of other clients.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Time between two visits of each connection.
const ROUND: Duration = Duration::from_millis(250);
/// Longest time to connect. A listener with a full queue does not respond.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Maximum number of bytes that are read from one connection in a round.
const GULP: usize = 1 << 20;

/// Freezes PID 1, which is the agent, and reports that on the console.
const FREEZE: &str = "cd /sys/fs/cgroup && mkdir z && echo 1 >z/cgroup.procs && echo 1 >z/cgroup.freeze && \
    until grep -q 'frozen 1' z/cgroup.events; do :; done; echo '<1>AGENT-IS-FROZEN' >/dev/kmsg";

/// Makes the agents of these sandboxes never respond again.
///
/// # Panics
/// Panics if one cannot be frozen.
#[track_caller]
pub fn freeze(home: &Home, sandboxes: &[&str]) {
    let freezing: Vec<_> =
        sandboxes.iter().map(|id| home.cli(["exec", id, "--", "sh", "-c", FREEZE]).spawn()).collect();
    for id in sandboxes {
        let says_so = || home.cli(["logs", id]).run().succeeds().out().contains("AGENT-IS-FROZEN").then_some(());
        let frozen = eventually(Duration::from_secs(60), says_so);
        assert!(frozen.is_some(), "{}", home.cli(["logs", id]).run().out());
    }
    drop(freezing);
}

/// What the attacker does with a connection after it has sent the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing. It does not read a successful response.
    Wait,
    /// Sends one more byte in each round.
    Drip,
    /// Reads the response as long as it lasts.
    Read,
    /// Sends the request again, on a new connection, after a response.
    Repeat,
}

/// Many connections of one kind.
#[derive(Debug)]
pub struct Attack {
    /// Name in the report.
    pub name: &'static str,
    address: SocketAddr,
    first: Vec<u8>,
    then: Then,
    count: usize,
    /// Results so far.
    pub seen: Seen,
}

/// Results of an attack so far.
#[derive(Debug, Default)]
pub struct Seen {
    opened: AtomicUsize,
    served: AtomicUsize,
    refused: AtomicUsize,
    failed: AtomicUsize,
    closed: AtomicUsize,
    bytes: AtomicUsize,
    held: AtomicUsize,
}

impl Seen {
    /// Returns the number of connections that were opened.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Returns the number of successful responses: 2xx or 101.
    #[must_use]
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Returns the number of responses with status 429.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns the number of other responses.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that the server closed without a response.
    #[must_use]
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that were read.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of open connections without a response or with a successful one.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    fn line(&self) -> String {
        format!(
            "{:>6} opened, {:>4} held, {:>5} served, {:>6} refused, {:>5} failed, {:>6} closed, {:>7} KiB read",
            self.opened(),
            self.held(),
            self.served(),
            self.refused(),
            self.failed(),
            self.closed(),
            self.bytes() >> 10
        )
    }
}

/// A request as bytes, complete or only its beginning.
#[derive(Debug, Clone)]
pub struct Request(String);

impl Request {
    /// Returns a request with no header but `Host`.
    #[must_use]
    pub fn new(method: &str, path: &str) -> Self {
        Self(format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"))
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        let _ = write!(self.0, "{name}: {value}\r\n");
        self
    }

    /// Returns the head: a request without a body, or the part before its body.
    #[must_use]
    pub fn head(self) -> Vec<u8> {
        (self.0 + "\r\n").into_bytes()
    }

    /// Returns the request with this body.
    #[must_use]
    pub fn whole(self, kind: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = self.with("Content-Type", kind).with("Content-Length", body.len()).head();
        bytes.extend(body);
        bytes
    }
}

impl Attack {
    /// Returns an attack on the control plane.
    #[must_use]
    pub fn on_api(server: &Server, name: &'static str, count: usize, then: Then, first: Vec<u8>) -> Self {
        Self::at(&server.api, name, count, then, first)
    }

    /// Returns an attack on the sandbox plane.
    #[must_use]
    pub fn on_sandboxes(server: &Server, name: &'static str, count: usize, then: Then, first: Vec<u8>) -> Self {
        Self::at(&server.sandboxes, name, count, then, first)
    }

    fn at(base: &str, name: &'static str, count: usize, then: Then, first: Vec<u8>) -> Self {
        let address = base.strip_prefix("http://").expect("a server without TLS").parse().expect("an address");
        Self { name, address, first, then, count, seen: Seen::default() }
    }

    fn keep(&self, is_over: &AtomicBool) {
        let mut connections: Vec<Option<Connection>> = (0..self.count).map(|_| None).collect();
        while !is_over.load(Ordering::Relaxed) {
            for connection in &mut connections {
                let kept = match connection.take() {
                    Some(open) => self.look(open),
                    None => self.open().ok(),
                };
                *connection = kept;
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
            self.seen.held.store(connections.iter().flatten().count(), Ordering::Relaxed);
            thread::sleep(ROUND);
        }
    }

    fn open(&self) -> io::Result<Connection> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(CONNECT_WITHIN))?;
        bind(&socket, &SocketAddrV4::new(ATTACKER, 0))?;
        connect(&socket, &self.address)?;
        let mut stream = TcpStream::from(socket);
        count(&self.seen.opened);
        stream.write_all(&self.first)?;
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, is_served: false })
    }

    /// Returns the connection if it should be kept.
    fn look(&self, mut connection: Connection) -> Option<Connection> {
        if !connection.is_served {
            let mut begin = [0; 12];
            match connection.stream.peek(&mut begin) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.then == Then::Drip {
                        // If the server has closed the connection, the next round notices.
                        let _ = connection.stream.write(b"x");
                    }
                    return Some(connection);
                }
                Ok(0) | Err(_) => {
                    count(&self.seen.closed);
                    return None;
                }
                Ok(_) => {}
            }
            match &begin[9..] {
                [b'2', ..] | b"101" => count(&self.seen.served),
                b"429" => {
                    count(&self.seen.refused);
                    return None;
                }
                _ => {
                    count(&self.seen.failed);
                    return None;
                }
            }
            connection.is_served = true;
        }
        match self.then {
            Then::Repeat => None,
            Then::Read => self.read(connection),
            Then::Wait | Then::Drip => Some(connection),
        }
    }

    fn read(&self, mut connection: Connection) -> Option<Connection> {
        let mut bytes = vec![0; 64 << 10];
        let mut all = 0;
        while all < GULP {
            match connection.stream.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => return None,
                Ok(count) => all += count,
            }
        }
        self.seen.bytes.fetch_add(all, Ordering::Relaxed);
        Some(connection)
    }
}

struct Connection {
    stream: TcpStream,
    is_served: bool,
}

fn count(of: &AtomicUsize) {
    of.fetch_add(1, Ordering::Relaxed);
}

/// Keeps all attacks running while `other` runs, and prints their results.
pub fn during<T>(attacks: &[Attack], other: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        for attack in attacks {
            scope.spawn(|| attack.keep(&is_over));
        }
        // Ends the attacks if `other` panics too, as the scope waits for their threads.
        let _ends = SetWhenDropped(&is_over);
        other()
    });
    for attack in attacks {
        eprintln!("{:<36} {}", attack.name, attack.seen.line());
    }
    done
}

struct SetWhenDropped<'b>(&'b AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
