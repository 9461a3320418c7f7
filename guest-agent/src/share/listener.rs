//! The vsock ports of a share, and their connections.

use crate::server::listener::{bind_vsock, is_host};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, acceptfrom_with, send};
use std::os::fd::OwnedFd;

/// The ends of a relay.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// The device of the mount.
    pub(crate) device: OwnedFd,
    /// Where the host connects.
    pub(crate) listener: OwnedFd,
    /// Where the host connects to hold the share.
    pub(crate) holds: OwnedFd,
    /// Where the share is mounted.
    pub(crate) path: Vec<u8>,
}

/// Listens for connections of the host on a vsock port.
pub(crate) fn listen(port: u32) -> Result<OwnedFd, Errno> {
    let socket = bind_vsock(port)?;
    fcntl_setfl(&socket, fcntl_getfl(&socket)? - OFlags::NONBLOCK)?;
    Ok(socket)
}

/// Waits for a connection of the host. Connections of others are closed.
pub(super) fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    loop {
        match acceptfrom_with(listener, SocketFlags::CLOEXEC) {
            Ok((socket, address)) if address.as_ref().is_some_and(is_host) => return Ok(socket),
            Ok(_) | Err(Errno::INTR | Errno::CONNABORTED | Errno::CONNRESET) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Sends all bytes.
pub(super) fn send_all(connection: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match send(connection, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
