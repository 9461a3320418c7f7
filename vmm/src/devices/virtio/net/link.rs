//! The cable of a card: the socket for its frames, which the manager attaches and the peer ends, and the epoll set that
//! says when it is of use.
//!
//! The socket is watched level-triggered, and only for what can be done then: so neither a guest without receive buffers
//! nor a peer that does not read wakes the event loop without end.

use super::{counters::Counters, frame::Start};
use crate::devices::virtio::device::DeviceError;
use rustix::{
    event::{
        EventfdFlags,
        epoll::{self, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketType, recv, sockopt},
    time::Timespec,
};
use sandboxvm_protocol::vmm::NetworkStats;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Why a socket cannot be attached to a card.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Not a socket for packets within the host.
    #[error("the file for the frames of the network card is not a Unix socket of type SOCK_SEQPACKET")]
    Kind,
}

/// The host's side of a card. Clones are of the same card.
#[derive(Debug, Clone)]
pub struct NetworkCard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Attached, and not yet taken over by the device.
    next: Mutex<Option<OwnedFd>>,
    /// Readable when the device is to be served again.
    wake: OwnedFd,
    counters: Counters,
}

impl NetworkCard {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared { next: Mutex::new(None), wake, counters: Counters::default() };
        Ok(Self(Arc::new(shared)))
    }

    /// Connects the card to a socket, in place of the one before. The guest's driver reads that there is a link
    /// from now on, and the first frames are carried when the event loop serves the device next.
    ///
    /// # Errors
    /// [`AttachError::Kind`].
    pub fn attach(&self, socket: OwnedFd) -> Result<(), AttachError> {
        let is_unix = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
        if !is_unix || sockopt::socket_type(&socket) != Ok(SocketType::SEQPACKET) {
            return Err(AttachError::Kind);
        }
        *self.next() = Some(socket);
        self.wake();
        Ok(())
    }

    /// Returns the counters since the card was made.
    #[must_use]
    pub fn stats(&self) -> NetworkStats {
        self.0.counters.read()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Asks for a turn of the event loop.
    pub(super) fn wake(&self) {
        // Fails only with 2^64-2 requests pending, when one more makes no difference.
        let _ = rustix::io::write(&self.0.wake, &1_u64.to_ne_bytes());
    }

    fn slept(&self) {
        // Nothing to read is as good as having read it.
        let _ = rustix::io::read(&self.0.wake, &mut [0; 8]);
    }

    fn next(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // A thread that panicked while holding it has ended the process already (see `main.rs`).
        self.0.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the device may do now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Readiness {
    /// The socket has room again.
    pub(super) writable: bool,
    /// The peer left, or the socket failed.
    pub(super) over: bool,
}

/// What is wanted of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    /// A frame.
    pub(super) frames: bool,
    /// Room for a frame.
    pub(super) room: bool,
}

/// The next frame in the socket.
#[derive(Debug)]
pub(super) enum Next {
    /// There is none now.
    Nothing,
    /// Its length, and what it begins with.
    Frame(usize, Start),
    /// There will be none: the peer left, or the socket failed.
    Over,
}

const WAKE: u64 = 0;
const SOCKET: u64 = 1;

/// The device's side: the socket in use.
#[derive(Debug)]
pub(super) struct Link {
    card: NetworkCard,
    epoll: OwnedFd,
    socket: Option<OwnedFd>,
    watched: EventFlags,
}

impl Link {
    pub(super) fn new(card: NetworkCard) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &card.0.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self { card, epoll, socket: None, watched: EventFlags::empty() })
    }

    /// A descriptor that is readable when the device is to be served.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether a socket is attached.
    pub(super) fn is_up(&self) -> bool {
        self.socket.is_some() || self.card.next().is_some()
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Takes over a socket that was attached; true if there was one.
    pub(super) fn take_over(&mut self) -> Result<bool, DeviceError> {
        let Some(socket) = self.card.next().take() else { return Ok(false) };
        self.end();
        epoll::add(&self.epoll, &socket, EventData::new_u64(SOCKET), EventFlags::empty()).map_err(watching_failed)?;
        (self.socket, self.watched) = (Some(socket), EventFlags::empty());
        Ok(true)
    }

    /// Drops the socket.
    pub(super) fn end(&mut self) {
        if let Some(socket) = self.socket.take() {
            // Closing it would do only if no other process held a copy of the descriptor, and a fork of this one may.
            let _ = epoll::delete(&self.epoll, &socket);
        }
    }

    /// Says what is wanted of the socket from now on.
    pub(super) fn watch(&mut self, interest: Interest) -> Result<(), DeviceError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, interest.frames);
        flags.set(EventFlags::OUT, interest.room);
        if flags != self.watched {
            epoll::modify(&self.epoll, socket, EventData::new_u64(SOCKET), flags).map_err(watching_failed)?;
            self.watched = flags;
        }
        Ok(())
    }

    /// Collects what happened, without waiting.
    pub(super) fn ready(&self) -> Result<Readiness, DeviceError> {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(WAKE) }; 2];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = match epoll::wait(&self.epoll, &mut events, Some(&now)) {
            // The event loop comes again for what is left.
            Err(Errno::INTR) => 0,
            result => result.map_err(watching_failed)?,
        };
        let mut readiness = Readiness::default();
        for event in &events[..count] {
            let flags = event.flags;
            if event.data.u64() == WAKE {
                self.card.slept();
            } else {
                readiness.over |= flags.intersects(EventFlags::HUP | EventFlags::ERR);
                readiness.writable |= flags.contains(EventFlags::OUT);
            }
        }
        Ok(readiness)
    }

    /// Looks at the next frame, which stays in the socket.
    pub(super) fn peek(&self) -> Next {
        let Some(socket) = &self.socket else { return Next::Nothing };
        let mut start = [0; size_of::<Start>()];
        loop {
            return match recv(socket, &mut start[..], RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
                Ok((_, 0)) => Next::Over,
                Ok((_, length)) => Next::Frame(length, start),
                Err(Errno::AGAIN) => Next::Nothing,
                Err(Errno::INTR) => continue,
                Err(_) => Next::Over,
            };
        }
    }

    /// Drops the next frame.
    pub(super) fn skip(&self) {
        if let Some(socket) = &self.socket {
            // What fails here fails again at the next look.
            let _ = recv(socket, &mut [0; 1], RecvFlags::DONTWAIT);
        }
    }
}

fn watching_failed(error: Errno) -> DeviceError {
    DeviceError::Host { what: "watching the socket of the network card", source: error.into() }
}
