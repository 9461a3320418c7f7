//! The dialer: the process that opens a sandbox's connections, at the request of its egress process. It never sees a byte
//! of a guest. Its requests have a fixed size, and it holds each of them to the floor, to its list of resolvers and to the
//! listed ports of the host: an egress process that was taken over gets nothing else from it.

mod connecting;
pub mod host;
pub mod proxy;
pub mod reach;

use crate::packets::{self, PacketError};
use connecting::{Connecting, Dialled, begin, look};
use ipnet::IpNet;
use reach::Reachable;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio},
};
use sandboxvm_protocol::egress::{
    DialAnswer, DialFailure, DialRequest, DialerEvent, DialerRequest, DialerSetup, dial::REQUEST_LEN,
};
use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

/// Maximum number of connections that are being dialled.
pub const MAX_DIALLED: usize = 256;

/// Maximum number of requests that are read before sockets are looked at.
const REQUESTS_AT_ONCE: usize = 64;

/// Why a dialer ends before its supervisor ends it.
#[derive(Debug, thiserror::Error)]
pub enum DialerError {
    /// A packet of the supervisor or of the egress process.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The first message is not [`DialerRequest::Begin`], or a later one is.
    #[error("unexpected message of the supervisor")]
    Unexpected,
    /// A network that the operator opened.
    #[error("invalid network {0:?}: expected an address, a slash and the length of its prefix")]
    Opened(String),
    /// The host's addresses are not known.
    #[error(transparent)]
    Host(#[from] host::HostError),
    /// The supervisor cannot be answered.
    #[error("cannot answer the supervisor: {0}")]
    Answer(Errno),
    /// The egress process said what no egress process says.
    #[error("a request of the egress process is malformed")]
    Request,
    /// Waiting failed.
    #[error("cannot wait for requests: {0}")]
    Poll(Errno),
}

/// Serves until the supervisor or the egress process closes its socket. To be called when the process is confined.
///
/// # Errors
/// Every [`DialerError`].
pub fn serve(supervisor: OwnedFd) -> Result<(), DialerError> {
    let Some(mut begin) = packets::receive_message::<DialerRequest>(&supervisor)? else { return Ok(()) };
    let DialerRequest::Begin(DialerSetup { requests, opened, resolvers, proxy, settings }) = begin.message.clone()
    else {
        return Err(DialerError::Unexpected);
    };
    let requests = begin.take(requests)?;
    drop(begin);
    let net = |text: String| text.parse::<IpNet>().map_err(|_| DialerError::Opened(text));
    let opened = opened.into_iter().map(net).collect::<Result<_, _>>()?;
    let reachable = Reachable::new(opened, resolvers, proxy, settings, Instant::now())?;
    for socket in [&supervisor, &requests] {
        ioctl_fionbio(socket, true).map_err(DialerError::Poll)?;
    }
    let mut dialer = Dialer { supervisor, requests, reachable, connecting: Vec::new(), answers: VecDeque::new() };
    dialer.ready()?;
    while dialer.turn()? {}
    Ok(())
}

struct Dialer {
    supervisor: OwnedFd,
    requests: OwnedFd,
    reachable: Reachable,
    connecting: Vec<Connecting>,
    /// What the egress process has not taken yet. While there are any, its requests wait, so there are never more than are
    /// dialled at the same time, and one.
    answers: VecDeque<(DialAnswer, Option<OwnedFd>)>,
}

/// Whether a connection is still open.
type Open = bool;

impl Dialer {
    fn ready(&self) -> Result<(), DialerError> {
        let packet = packets::to_packet(&DialerEvent::Ready).map_err(PacketError::from)?;
        packets::send_with(&self.supervisor, &packet, None).map_err(DialerError::Answer)
    }

    /// Waits for something to do, and does it.
    fn turn(&mut self) -> Result<Open, DialerError> {
        let (of_supervisor, of_requests, arrived) = self.wait()?;
        let now = Instant::now();
        // Sockets first: their positions are those that were polled.
        self.look_at_sockets(&arrived, now);
        if of_supervisor && !self.configure()? {
            return Ok(false);
        }
        if !self.send_answers()? {
            return Ok(false);
        }
        if of_requests && self.answers.is_empty() {
            return self.read_requests(now);
        }
        Ok(true)
    }

    fn wait(&self) -> Result<(bool, bool, Vec<bool>), DialerError> {
        let wanted = if self.answers.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        let mut polled = vec![
            PollFd::from_borrowed_fd(self.supervisor.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.requests.as_fd(), wanted),
        ];
        polled.extend(self.connecting.iter().map(|connecting| PollFd::new(&connecting.socket, connecting.event())));
        let first = self.connecting.iter().map(|connecting| connecting.deadline).min();
        let timeout = first.map(|deadline| {
            // A little longer, so that the deadline has passed then.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(DialerError::Poll(error)),
        }
        let mut reported = polled.iter().map(|polled| !polled.revents().is_empty());
        let of_supervisor = reported.next().unwrap_or_default();
        let of_requests = reported.next().unwrap_or_default();
        Ok((of_supervisor, of_requests, reported.collect()))
    }

    fn look_at_sockets(&mut self, arrived: &[bool], now: Instant) {
        for (connecting, arrived) in std::mem::take(&mut self.connecting).into_iter().zip(arrived) {
            let (id, is_late) = (connecting.id, connecting.deadline <= now);
            let dialled = if *arrived { look(connecting) } else { Dialled::Waits(connecting) };
            // Also if something arrived: a proxy may say a byte at a time.
            let is_given_up = is_late && matches!(dialled, Dialled::Waits(_));
            self.settle(id, if is_given_up { Dialled::Failed(DialFailure::TimedOut) } else { dialled });
        }
    }

    fn settle(&mut self, id: u32, dialled: Dialled) {
        let (result, socket) = match dialled {
            Dialled::Waits(connecting) => return self.connecting.push(connecting),
            Dialled::Connected(socket) => (Ok(()), Some(socket)),
            Dialled::Failed(failure) => (Err(failure), None),
        };
        self.answers.push_back((DialAnswer { id, result }, socket));
    }

    fn configure(&mut self) -> Result<Open, DialerError> {
        let request = match packets::receive_message::<DialerRequest>(&self.supervisor) {
            Err(PacketError::Socket(Errno::AGAIN | Errno::INTR)) => return Ok(true),
            request => request?,
        };
        match request.map(|request| request.message) {
            Some(DialerRequest::Configure(settings)) => self.reachable.configure(settings),
            Some(DialerRequest::Begin(_)) => return Err(DialerError::Unexpected),
            None => return Ok(false),
        }
        self.ready()?;
        Ok(true)
    }

    /// Reads requests that are there, as long as their answers are taken. Not all of them: sockets have to be looked at too.
    fn read_requests(&mut self, now: Instant) -> Result<Open, DialerError> {
        for _ in 0..REQUESTS_AT_ONCE {
            if !self.answers.is_empty() {
                break;
            }
            let mut bytes = [0; REQUEST_LEN];
            let packet = match packets::receive(&self.requests, &mut bytes) {
                Err(PacketError::Socket(Errno::AGAIN | Errno::INTR)) => return Ok(true),
                Err(PacketError::Socket(Errno::CONNRESET)) => return Ok(false),
                packet => packet?,
            };
            if packet.bytes == 0 {
                return Ok(false);
            }
            if packet.bytes != REQUEST_LEN || !packet.fds.is_empty() {
                return Err(DialerError::Request);
            }
            let request = DialRequest::from_bytes(&bytes).ok_or(DialerError::Request)?;
            let dialled = self.dial(request, now).unwrap_or_else(Dialled::Failed);
            self.settle(request.id, dialled);
            if !self.send_answers()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn dial(&mut self, request: DialRequest, now: Instant) -> Result<Dialled, DialFailure> {
        if self.connecting.len() >= MAX_DIALLED {
            return Err(DialFailure::Busy);
        }
        Ok(begin(request.id, self.reachable.target(request.dial, now)?, now))
    }

    /// Sends the answers that the egress process has room for.
    fn send_answers(&mut self) -> Result<Open, DialerError> {
        while let Some((answer, socket)) = self.answers.front() {
            match packets::send_with(&self.requests, &answer.to_bytes(), socket.as_ref()) {
                Ok(()) => drop(self.answers.pop_front()),
                Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => break,
                // It has too many sockets on their way already.
                Err(Errno::TOOMANYREFS) => {
                    let busy = DialAnswer { id: answer.id, result: Err(DialFailure::Busy) };
                    self.answers.pop_front();
                    self.answers.push_front((busy, None));
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }
}
