//! The cable of a guest's network card, as the egress process holds it: a socket on which one packet
//! is the device's header and one Ethernet frame.

use crate::cli;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};
use std::{os::fd::OwnedFd, time::Duration};

/// Longest time until a frame comes. It ends what hangs, and measures nothing.
const FRAME: Duration = Duration::from_secs(60);

/// The host's end of a cable.
#[derive(Debug)]
pub struct Cable(OwnedFd);

impl Cable {
    /// Returns a cable, and the end of it for a VMM.
    ///
    /// # Panics
    /// Panics if there is no socket pair.
    #[must_use]
    pub fn new() -> (Self, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair");
        (Self(ours), theirs)
    }

    /// Sends a packet, and waits until the socket has room for it.
    ///
    /// # Panics
    /// Panics if the VMM has closed the socket.
    pub fn send(&self, packet: &[u8]) {
        let sent = send(&self.0, packet, SendFlags::NOSIGNAL).expect("the VMM has its end");
        assert_eq!(sent, packet.len());
    }

    /// Sends a packet if the socket has room for it. Returns whether it had.
    #[must_use]
    pub fn try_send(&self, packet: &[u8]) -> bool {
        send(&self.0, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
    }

    /// Returns whether a packet comes, or the VMM closes the socket, within this time.
    #[must_use]
    pub fn has_packet(&self, within: Duration) -> bool {
        let within = Timespec { tv_sec: i64::try_from(within.as_secs()).expect("minutes"), tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut fds, Some(&within)).expect("poll works") > 0
    }

    /// Waits for a packet. Returns `None` if the VMM has closed the socket.
    ///
    /// # Panics
    /// Panics if none comes.
    #[must_use]
    pub fn receive(&self) -> Option<Vec<u8>> {
        assert!(self.has_packet(FRAME * cli::patience()), "no frame came");
        let mut bytes = vec![0; 70_000];
        let (length, _) = recv(&self.0, &mut bytes[..], RecvFlags::empty()).ok()?;
        (length > 0).then(|| bytes[..length].to_vec())
    }
}
