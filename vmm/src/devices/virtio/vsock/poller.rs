//! The device's epoll set: the listener, all clients, one timer and a wake-up for work left over.
//!
//! Clients are watched edge-triggered: a client whose bytes cannot be delivered for want of credit or of receive buffers
//! stays readable, and level-triggered it would wake the event loop without end. [`super::connection::Connection`]
//! remembers an edge until the socket says EAGAIN. The other three are level-triggered.

use super::packet::HostPort;
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use std::{io, time::Duration};

/// Who an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Wake,
    Timer,
    Handshake(HandshakeId),
    Connection(HostPort),
}

/// Names a client that has not finished its `CONNECT` line; never used twice within 2^32 clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HandshakeId(pub(super) u32);

impl Token {
    fn encode(self) -> epoll::EventData {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Wake => (1, 0),
            Self::Timer => (2, 0),
            Self::Handshake(id) => (3, id.0),
            Self::Connection(port) => (4, port.0),
        };
        epoll::EventData::new_u64(kind << 32 | u64::from(number))
    }

    fn decode(data: epoll::EventData) -> Option<Self> {
        let number = u32::try_from(data.u64() & u64::from(u32::MAX)).ok()?;
        Some(match data.u64() >> 32 {
            0 => Self::Listener,
            1 => Self::Wake,
            2 => Self::Timer,
            3 => Self::Handshake(HandshakeId(number)),
            4 => Self::Connection(HostPort(number)),
            _ => return None,
        })
    }
}

/// What happened to a client's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Readiness {
    /// A read gives bytes, the end of the stream or an error.
    pub(super) readable: bool,
    /// The client sends nothing beyond what it has sent.
    pub(super) ended: bool,
    /// There is room again.
    pub(super) writable: bool,
    /// Both directions are shut: nothing more can be sent to the client, and nothing beyond what it left will come.
    pub(super) hung_up: bool,
}

/// The epoll set.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
    timer: OwnedFd,
    awake: bool,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let poller = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?,
            awake: false,
        };
        poller.watch_level(&poller.wake, Token::Wake)?;
        poller.watch_level(&poller.timer, Token::Timer)?;
        Ok(poller)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Reports `source` as long as it is readable.
    pub(super) fn watch_level(&self, source: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, token.encode(), epoll::EventFlags::IN)?)
    }

    /// Reports every time a client sends or leaves.
    pub(super) fn watch_client(&self, client: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, client, token.encode(), client_flags(false))?)
    }

    /// Gives a watched client another token, and says whether room in its socket matters; what is ready is reported again.
    pub(super) fn rewatch_client(&self, client: impl AsFd, token: Token, for_room: bool) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, client, token.encode(), client_flags(for_room))?)
    }

    /// Stops reports about `source`. Closing it would do only if no other process held a copy of the descriptor, and a
    /// fork of this one may.
    pub(super) fn forget(&self, source: impl AsFd) {
        // Fails only when it was not watched.
        let _ = epoll::delete(&self.epoll, source);
    }

    /// Collects what is ready, without waiting; `events` is a buffer to reuse.
    pub(super) fn ready(&self, events: &mut [epoll::Event]) -> io::Result<Vec<(Token, Readiness)>> {
        let count = loop {
            match epoll::wait(&self.epoll, &mut *events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        let named = events.iter().take(count).filter_map(|event| {
            let flags = event.flags;
            let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            let ended = hung_up || flags.contains(epoll::EventFlags::RDHUP);
            let readable = ended || flags.contains(epoll::EventFlags::IN);
            let writable = flags.contains(epoll::EventFlags::OUT);
            let readiness = Readiness { readable, ended, writable, hung_up };
            Some((Token::decode(event.data)?, readiness))
        });
        Ok(named.collect())
    }

    /// Makes the epoll set readable until [`Poller::slept`], for work that was left over.
    pub(super) fn wake(&mut self) {
        if !self.awake {
            // Fails only with 2^64-2 wake-ups pending; there is at most one.
            self.awake = rustix::io::write(&self.wake, &1u64.to_ne_bytes()).is_ok();
        }
    }

    /// Ends a wake-up.
    pub(super) fn slept(&mut self) {
        drain(&self.wake);
        self.awake = false;
    }

    /// Sets the timer off after `delay`.
    pub(super) fn set_timer(&self, delay: Duration) -> io::Result<()> {
        // Zero would turn it off.
        let delay = delay.max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(delay).map_err(io::Error::other)?;
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }

    /// The timer's event was seen.
    pub(super) fn timer_fired(&self) {
        drain(&self.timer);
    }
}

fn client_flags(for_room: bool) -> epoll::EventFlags {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    if for_room { flags | epoll::EventFlags::OUT } else { flags }
}

fn drain(counter: &OwnedFd) {
    // Nothing to read is as good as having read it.
    let _ = rustix::io::read(counter, &mut [0; 8]);
}
