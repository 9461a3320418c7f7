//! The socket to which hosts connect: vsock in a sandbox, a Unix socket if the agent runs as an
//! ordinary process.
//!
//! A listening vsock socket survives a transport reset (only connected ones are reset, net/vmw_vsock/virtio_transport.c),
//! so a restored machine is reachable immediately.

use super::error::ServerError;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, bind, listen, socket_with,
};
use sandboxvm_protocol::agent::PORT;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 128;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The transport of connections, which decides what their errors mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Virtio vsock.
    Vsock,
    /// A Unix stream socket.
    Unix,
}

/// The result of one accept.
#[derive(Debug)]
pub(super) enum Accepted {
    /// A connection of a host.
    Host(OwnedFd),
    /// No connection, or one from a peer that may not connect to the agent.
    None,
    /// There is no file descriptor or memory for it now.
    Exhausted,
    /// The listening socket itself is broken.
    Broken,
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    transport: Transport,
}

impl Listener {
    /// Listens for the host on the agent's vsock port.
    pub(crate) fn vsock() -> Result<Self, ServerError> {
        let socket = bind_vsock(PORT).map_err(ServerError::Listen)?;
        Ok(Self { socket, transport: Transport::Vsock })
    }

    /// Listens on a Unix socket at `path`, which must not exist.
    pub(crate) fn unix(path: &CStr) -> Result<Self, ServerError> {
        let socket = bind_unix(path).map_err(ServerError::Listen)?;
        Ok(Self { socket, transport: Transport::Unix })
    }

    /// Returns the transport of its connections.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Accepts one connection without blocking. Only the host may connect: with vsock loopback any
    /// process of the guest could connect, and would run commands as root.
    pub(super) fn accept(&self) -> Accepted {
        match acceptfrom_with(&self.socket, FLAGS) {
            Ok((socket, address)) => {
                if self.transport == Transport::Unix || address.as_ref().is_some_and(is_host) {
                    Accepted::Host(socket)
                } else {
                    Accepted::None
                }
            }
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => Accepted::Exhausted,
            Err(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => Accepted::Broken,
            Err(_) => Accepted::None,
        }
    }

    /// Replaces a socket that stopped listening. A Unix socket cannot be replaced, because its path
    /// exists.
    pub(super) fn renew(&mut self) -> Result<(), ServerError> {
        if self.transport == Transport::Vsock {
            // The port is free only after the old socket is closed, so an unbound socket replaces
            // it first.
            self.socket = vsock_socket().map_err(ServerError::Listen)?;
            self.socket = bind_vsock(PORT).map_err(ServerError::Listen)?;
        }
        Ok(())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn vsock_socket() -> Result<OwnedFd, Errno> {
    let family = AddressFamily::from_raw(libc::AF_VSOCK as u16);
    socket_with(family, SocketType::STREAM, FLAGS, None)
}

/// Returns a vsock socket that listens on a port of any CID, as a clone may get another one.
pub(crate) fn bind_vsock(port: u32) -> Result<OwnedFd, Errno> {
    let socket = vsock_socket()?;
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as u16,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: libc::VMADDR_CID_ANY,
        svm_zero: [0; 4],
    };
    // SAFETY: the pointer and the length are those of one initialised `sockaddr_vm`, which bind(2) only reads.
    let bound =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as u32) };
    if bound != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn bind_unix(path: &CStr) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Returns true for the address of a host.
pub(crate) fn is_host(address: &SocketAddrAny) -> bool {
    peer_cid(address) == Some(libc::VMADDR_CID_HOST)
}

/// Returns the CID of the peer of a vsock connection.
fn peer_cid(address: &SocketAddrAny) -> Option<u32> {
    let is_vsock = address.address_family().as_raw() == libc::AF_VSOCK as u16
        && address.addr_len() as usize >= size_of::<libc::sockaddr_vm>();
    // SAFETY: of a vsock address, at least `sockaddr_vm` is there and initialised, see above; read unaligned because
    // rustix states no alignment.
    is_vsock.then(|| unsafe { address.as_ptr().cast::<libc::sockaddr_vm>().read_unaligned() }.svm_cid)
}
