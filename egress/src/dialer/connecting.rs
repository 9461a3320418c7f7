//! Sockets on their way to a peer. Nothing here waits: a socket is asked whether it has arrived when poll(2) says so.

use super::{
    proxy::{Handshake, Progress},
    reach::Target,
};
use rustix::{
    event::PollFlags,
    io::Errno,
    net::{
        AddressFamily, Protocol, SocketFlags, SocketType, connect, getpeername, getsockname, ipproto, socket_with,
        sockopt,
    },
};
use sandboxvm_protocol::egress::DialFailure;
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// How long a peer has to answer, and the proxy on the way to it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket that is being connected.
#[derive(Debug)]
pub struct Connecting {
    /// ID of the request.
    pub id: u32,
    /// The socket. It is writable when it is connected or has failed.
    pub socket: OwnedFd,
    /// When it has taken too long.
    pub deadline: Instant,
    step: Step,
}

/// What a socket waits for.
#[derive(Debug)]
enum Step {
    /// Its peer. If that refuses, the other one is tried.
    Peer(Option<SocketAddr>),
    /// The proxy, which then has to be asked.
    Proxy(Box<Handshake>),
    /// The answers of the proxy.
    Handshake(Box<Handshake>),
}

impl Connecting {
    /// Returns what poll(2) has to wait for.
    pub fn event(&self) -> PollFlags {
        match &self.step {
            Step::Handshake(handshake) if !handshake.sends() => PollFlags::IN,
            Step::Peer(_) | Step::Proxy(_) | Step::Handshake(_) => PollFlags::OUT,
        }
    }
}

/// What became of a socket.
#[derive(Debug)]
pub enum Dialled {
    /// It is connected.
    Connected(OwnedFd),
    /// It has to be waited for.
    Waits(Connecting),
    /// There is none.
    Failed(DialFailure),
}

/// Begins to connect to `target`, for the request with this ID.
pub fn begin(id: u32, target: Target, now: Instant) -> Dialled {
    let deadline = now + PATIENCE;
    let begun = match target {
        Target::Tcp(to, otherwise) => return begin_tcp(id, to, Step::Peer(otherwise), deadline),
        Target::Proxied(proxy, handshake) => return begin_tcp(id, proxy, Step::Proxy(handshake), deadline),
        Target::Udp(to) => datagrams(to, None),
        Target::Echo(to) => {
            let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
            datagrams(SocketAddr::new(to, 0), Some(protocol))
        }
    };
    begun.map_or_else(Dialled::Failed, Dialled::Connected)
}

/// Looks how far a socket is that poll(2) reported.
pub fn look(connecting: Connecting) -> Dialled {
    let Connecting { id, socket, deadline, step } = connecting;
    if let Step::Handshake(handshake) = step {
        return shake(id, socket, handshake, deadline);
    }
    match (sockopt::socket_error(&socket), step) {
        (Ok(Ok(())), step) => arrive(id, socket, step, deadline),
        (Ok(Err(Errno::CONNREFUSED)), Step::Peer(Some(to))) => begin_tcp(id, to, Step::Peer(None), deadline),
        (Ok(Err(error)) | Err(error), step) => Dialled::Failed(failure_at(&step, failure(error))),
    }
}

fn begin_tcp(id: u32, to: SocketAddr, step: Step, deadline: Instant) -> Dialled {
    let connecting = || {
        let socket = open(to.ip(), SocketType::STREAM, None).map_err(failure)?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(failure)?;
        match connect(&socket, &to) {
            Ok(()) => Ok((socket, true)),
            Err(Errno::INPROGRESS) => Ok((socket, false)),
            Err(error) => Err(failure(error)),
        }
    };
    match (connecting(), step) {
        (Ok((socket, true)), step) => arrive(id, socket, step, deadline),
        (Ok((socket, false)), step) => Dialled::Waits(Connecting { id, socket, deadline, step }),
        (Err(DialFailure::Refused | DialFailure::Unreachable), Step::Peer(Some(to))) => {
            begin_tcp(id, to, Step::Peer(None), deadline)
        }
        (Err(failure), step) => Dialled::Failed(failure_at(&step, failure)),
    }
}

/// A socket is connected to its peer, or to a proxy.
fn arrive(id: u32, socket: OwnedFd, step: Step, deadline: Instant) -> Dialled {
    match (arrived(socket), step) {
        (Ok(socket), Step::Peer(_)) => Dialled::Connected(socket),
        (Ok(socket), Step::Proxy(handshake) | Step::Handshake(handshake)) => shake(id, socket, handshake, deadline),
        (Err(failure), step) => Dialled::Failed(failure_at(&step, failure)),
    }
}

fn shake(id: u32, socket: OwnedFd, mut handshake: Box<Handshake>, deadline: Instant) -> Dialled {
    match handshake.advance(&socket) {
        Ok(Progress::Done) => Dialled::Connected(socket),
        Ok(Progress::Waits) => Dialled::Waits(Connecting { id, socket, deadline, step: Step::Handshake(handshake) }),
        Err(failure) => Dialled::Failed(failure),
    }
}

/// Returns the failure of a connection, which is the proxy's if it was to be connected to.
fn failure_at(step: &Step, failure: DialFailure) -> DialFailure {
    match (step, failure) {
        (Step::Peer(_), failure) | (_, failure @ DialFailure::Busy) => failure,
        (Step::Proxy(_) | Step::Handshake(_), _) => DialFailure::ProxyUnreachable,
    }
}

fn datagrams(to: SocketAddr, protocol: Option<Protocol>) -> Result<OwnedFd, DialFailure> {
    let socket = open(to.ip(), SocketType::DGRAM, protocol).map_err(|error| match error {
        // Only groups in net.ipv4.ping_group_range have sockets for echo requests.
        Errno::ACCESS | Errno::PERM | Errno::PROTONOSUPPORT => DialFailure::Unsupported,
        error => failure(error),
    })?;
    connect(&socket, &to).map_err(failure)?;
    Ok(socket)
}

fn open(to: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)
}

/// Returns a connected socket unless it is connected to itself, which happens on the host's addresses: by chance if the port
/// that the kernel chose is the one that was dialled.
fn arrived(socket: OwnedFd) -> Result<OwnedFd, DialFailure> {
    let (own, peer) = (getsockname(&socket).map_err(failure)?, getpeername(&socket).map_err(failure)?);
    if Some(own) == peer { Err(DialFailure::Refused) } else { Ok(socket) }
}

fn failure(error: Errno) -> DialFailure {
    match error {
        Errno::CONNREFUSED | Errno::CONNRESET => DialFailure::Refused,
        Errno::TIMEDOUT => DialFailure::TimedOut,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN => DialFailure::Busy,
        // No route, no address of that family, or a firewall of the host.
        _ => DialFailure::Unreachable,
    }
}
