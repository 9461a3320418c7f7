//! Sockets on their way to a peer. Nothing here waits: a socket is asked whether it has arrived when poll(2) says so.

use super::reach::Target;
use rustix::{
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

/// How long a peer has to answer.
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
    /// What to try if the peer refuses.
    otherwise: Option<SocketAddr>,
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
    let begun = match target {
        Target::Tcp(to, otherwise) => return begin_tcp(id, to, otherwise, now + PATIENCE),
        Target::Udp(to) => datagrams(to, None),
        Target::Echo(to) => {
            let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
            datagrams(SocketAddr::new(to, 0), Some(protocol))
        }
    };
    begun.map_or_else(Dialled::Failed, Dialled::Connected)
}

/// Looks whether a socket that poll(2) reported is connected.
pub fn look(connecting: Connecting) -> Dialled {
    let Connecting { id, socket, deadline, otherwise } = connecting;
    match (sockopt::socket_error(&socket), otherwise) {
        (Ok(Ok(())), _) => arrived(socket).map_or_else(Dialled::Failed, Dialled::Connected),
        (Ok(Err(Errno::CONNREFUSED)), Some(to)) => begin_tcp(id, to, None, deadline),
        (Ok(Err(error)) | Err(error), _) => Dialled::Failed(failure(error)),
    }
}

fn begin_tcp(id: u32, to: SocketAddr, otherwise: Option<SocketAddr>, deadline: Instant) -> Dialled {
    let connecting = || {
        let socket = open(to.ip(), SocketType::STREAM, None).map_err(failure)?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(failure)?;
        match connect(&socket, &to) {
            Ok(()) => Ok((arrived(socket)?, true)),
            Err(Errno::INPROGRESS) => Ok((socket, false)),
            Err(error) => Err(failure(error)),
        }
    };
    match (connecting(), otherwise) {
        (Ok((socket, true)), _) => Dialled::Connected(socket),
        (Ok((socket, false)), otherwise) => Dialled::Waits(Connecting { id, socket, deadline, otherwise }),
        (Err(DialFailure::Refused | DialFailure::Unreachable), Some(to)) => begin_tcp(id, to, None, deadline),
        (Err(failure), _) => Dialled::Failed(failure),
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
