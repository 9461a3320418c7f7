//! The vsock port of a share.

use crate::server::listener::{bind_vsock, is_host};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use std::os::fd::OwnedFd;

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
