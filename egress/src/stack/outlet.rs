//! The way of frames to the guest: one frame is written and sent at a time. While the VMM does not take it, nothing else
//! is written, so this holds one frame whatever happens.

use super::addresses::{GATEWAY_MAC, GUEST_MAC, MTU};
use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use smoltcp::wire::{EthernetFrame, EthernetProtocol};
use std::{os::fd::OwnedFd, rc::Rc};
use tokio::{io::unix::AsyncFd, sync::Notify};

/// Bytes of the header before each frame, a `virtio_net_hdr_v1`.
pub const VIRTIO_HEADER: usize = 12;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;

/// Where the IP packet begins in what is sent.
const PACKET: usize = VIRTIO_HEADER + ETHERNET_HEADER;

/// Largest packet on the frame socket.
pub const MAX_FRAME: usize = PACKET + MTU;

/// `VIRTIO_NET_HDR_F_DATA_VALID`: the guest does not check the checksums of TCP and UDP.
const DATA_VALID: u8 = 2;

/// The way of frames to the guest.
#[derive(Debug)]
pub struct Outlet {
    socket: Rc<AsyncFd<OwnedFd>>,
    buffer: Box<[u8]>,
    /// Bytes of the frame that the VMM has not taken yet.
    unsent: usize,
    freed: Rc<Notify>,
    blocked: Rc<Notify>,
}

impl Outlet {
    /// Returns the way over `socket`, which is non-blocking.
    #[must_use]
    pub fn new(socket: Rc<AsyncFd<OwnedFd>>) -> Self {
        let mut buffer = vec![0; MAX_FRAME].into_boxed_slice();
        buffer[0] = DATA_VALID;
        let mut ethernet = EthernetFrame::new_unchecked(&mut buffer[VIRTIO_HEADER..]);
        ethernet.set_dst_addr(GUEST_MAC);
        ethernet.set_src_addr(GATEWAY_MAC);
        Self { socket, buffer, unsent: 0, freed: Rc::default(), blocked: Rc::default() }
    }

    /// Returns true if a frame can be written.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.unsent == 0
    }

    /// Returns what is notified when a frame can be written again.
    #[must_use]
    pub fn freed(&self) -> Rc<Notify> {
        Rc::clone(&self.freed)
    }

    /// Returns what is notified when a frame is not taken, so that the writability of the socket has to be awaited.
    #[must_use]
    pub fn blocked(&self) -> Rc<Notify> {
        Rc::clone(&self.blocked)
    }

    /// Sends the packet of `len` bytes that `write` writes. If no frame can be written, the packet is dropped, as on any
    /// full link.
    pub fn send(&mut self, kind: EthernetProtocol, len: usize, write: impl FnOnce(&mut [u8])) {
        self.send_up_to(kind, len, |packet| {
            write(packet);
            Some(len)
        });
    }

    /// Sends the packet that `write` writes into a buffer of at most `max` bytes, if it writes one: it returns the length.
    /// Returns false if no frame can be written; `write` is not called then.
    pub fn send_up_to(
        &mut self,
        kind: EthernetProtocol,
        max: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        if !self.is_free() || max > MTU {
            return false;
        }
        if let Some(len) = write(&mut self.buffer[PACKET..PACKET + max]) {
            EthernetFrame::new_unchecked(&mut self.buffer[VIRTIO_HEADER..]).set_ethertype(kind);
            self.unsent = PACKET + len.min(max);
            self.push();
            if !self.is_free() {
                self.blocked.notify_one();
            }
        }
        true
    }

    /// Tries again to send the frame that was not taken. Returns true if it was.
    pub fn retry(&mut self) -> bool {
        self.push();
        if self.is_free() {
            self.freed.notify_waiters();
        }
        self.is_free()
    }

    fn push(&mut self) {
        if self.unsent == 0 {
            return;
        }
        let frame = &self.buffer[..self.unsent];
        loop {
            match send(self.socket.get_ref(), frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => return,
                // After any other error there is no VMM. The end of the connection is noticed where frames are read.
                Ok(_) | Err(_) => break,
            }
        }
        self.unsent = 0;
    }
}
