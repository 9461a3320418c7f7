//! One TCP connection of the guest, from its first segment to its record: decided, dialled, answered, carried.

use super::{
    account::{Account, Ended},
    decision::{Carried, Verdict, begun},
    opening, questions,
    shared::Shared,
    splice::{Ends, reset},
    watch::{FIRST_BYTES, Watch},
};
use crate::{
    session::refused,
    stack::{
        addresses::MTU,
        guest_end::GuestEnd,
        guest_stream::GuestStream,
        packet::{Content, Inbound, Packet, packet_of},
        replies::{self, Unreachable},
    },
};
use sandboxvm_protocol::egress::{DialFailure, FlowEnd};
use std::{cell::RefCell, net::IpAddr, rc::Rc, time::Duration};
use tokio::net::TcpStream;

/// Buffers of a connection for each direction in bytes, and up to how many flows a new one gets them. The first are large, so
/// that some segments are on their way at a time. 1,024 flows have 70 MiB at most, and 64 KiB more for each that is still
/// inspected.
const BUFFERS: [(usize, Buffer); 3] =
    [(32, Buffer::Segments(4)), (256, Buffer::Segments(1)), (usize::MAX, Buffer::Bytes(16 * 1024))];

/// A length of a buffer. A buffer that is not a whole number of the longest segments would end each window with a short one,
/// which costs as much as a long one.
#[derive(Debug, Clone, Copy)]
enum Buffer {
    Segments(usize),
    Bytes(usize),
}

impl Buffer {
    /// Returns the length in bytes for a connection to `destination`.
    fn bytes(self, destination: IpAddr) -> usize {
        let headers = if destination.is_ipv4() { 40 } else { 60 };
        match self {
            Self::Segments(count) => count * (MTU - headers),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// How long the guest may take to confirm a connection that the gateway has answered.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// How long a connection may be idle (RFC 5382, REQ-5).
const IDLE: Duration = Duration::from_secs(7440);

/// A TCP connection of the guest.
#[derive(Debug)]
pub struct TcpFlow {
    /// Its account.
    pub account: Rc<Account>,
    /// The guest's end, from when the upstream has answered.
    end: RefCell<Option<Rc<GuestEnd>>>,
}

impl TcpFlow {
    /// Returns a flow that is not dialled yet.
    #[must_use]
    pub fn new(account: Account) -> Rc<Self> {
        Rc::new(Self { account: Rc::new(account), end: RefCell::new(None) })
    }

    /// Takes a segment of the guest.
    pub fn receive(&self, packet: &Packet<'_>) {
        let end = self.end.borrow().clone();
        match (end, packet.content) {
            (Some(end), _) => end.receive(packet.bytes),
            // The guest does not want the connection any more. Repeats of its first segment are not answered either.
            (None, Content::Tcp { resets: true, .. }) => self.account.end(FlowEnd::Reset),
            (None, _) => {}
        }
    }

    /// Carries the connection to its end. `syn` is its first packet.
    pub async fn run(&self, shared: &Shared, syn: &[u8]) -> Ended {
        let ended = tokio::select! {
            biased;
            end = self.account.ending() => Ended::from(end),
            ended = self.carry(shared, syn) => ended,
        };
        let end = self.end.borrow_mut().take();
        match end {
            Some(end) if ended.end != FlowEnd::Closed => end.abort(),
            None if ended.end == FlowEnd::Cut => {
                if let Inbound::Packet(packet) = packet_of(syn) {
                    replies::reset(&mut shared.link.outlet.borrow_mut(), &packet);
                }
            }
            Some(_) | None => {}
        }
        ended
    }

    async fn carry(&self, shared: &Shared, syn: &[u8]) -> Ended {
        let Inbound::Packet(syn) = packet_of(syn) else { return FlowEnd::NotEstablished.into() };
        let first = begun(&self.account.session().borrow(), &self.account.key);
        let dial = match &first {
            Verdict::Resolve => {
                let Some(guest) = self.answer(shared, &syn).await else { return FlowEnd::NotEstablished.into() };
                return questions::over_tcp(shared, guest, &self.account).await;
            }
            Verdict::Forward(dial, _) | Verdict::Inspect(dial, _) => *dial,
            Verdict::Refuse(decided) => return self.refuse(shared, &syn, decided.clone()),
        };
        self.account.is_inspected.set(matches!(first, Verdict::Inspect(..)));
        let upstream = match shared.dialing.dial(dial).await {
            Ok(fd) => TcpStream::from_std(std::net::TcpStream::from(fd)).map_err(|_| DialFailure::Busy),
            Err(failure) => Err(failure),
        };
        let upstream = match upstream {
            Ok(upstream) => Rc::new(upstream),
            Err(failure) => return self.fail(shared, &syn, failure),
        };
        // The settings may have changed while it was dialled.
        let verdict = begun(&self.account.session().borrow(), &self.account.key);
        if let Verdict::Refuse(decided) = verdict {
            return self.refuse(shared, &syn, decided);
        }
        let is_inspected = matches!(verdict, Verdict::Inspect(..));
        self.account.is_inspected.set(is_inspected);
        if !is_inspected {
            self.account.known.borrow_mut().carried = Carried::Blindly;
        }
        let Some(guest) = self.answer(shared, &syn).await else {
            reset(&upstream);
            return FlowEnd::NotEstablished.into();
        };
        let watch = Watch::new(&self.account, FIRST_BYTES);
        let ends = Ends { guest: &guest, upstream: &upstream, account: &self.account, watch: &watch };
        let carried = async {
            match &verdict {
                Verdict::Inspect(_, flow) => opening::inspected(ends, flow).await,
                Verdict::Resolve | Verdict::Forward(..) | Verdict::Refuse(_) => {
                    ends.splice().await.map_or(FlowEnd::Reset, |()| FlowEnd::Closed).into()
                }
            }
        };
        let ended = tokio::select! {
            biased;
            ended = carried => ended,
            () = guest.gone() => FlowEnd::Reset.into(),
            () = self.account.idle(|| IDLE) => FlowEnd::Idle.into(),
        };
        if ended.end == FlowEnd::Closed {
            ends.closed().await;
        } else {
            reset(&upstream);
        }
        ended
    }

    /// Answers the guest's first segment, and waits until it has confirmed the answer.
    async fn answer(&self, shared: &Shared, syn: &Packet<'_>) -> Option<GuestStream> {
        let open = shared.open.get();
        let capacity =
            BUFFERS.iter().find(|(flows, _)| open <= *flows).map_or(0, |(_, buffer)| buffer.bytes(syn.destination));
        let end = GuestEnd::open(&shared.link, syn, capacity)?;
        *self.end.borrow_mut() = Some(Rc::clone(&end));
        let guest = GuestStream::new(end);
        let established = tokio::time::timeout(HANDSHAKE, guest.established()).await;
        matches!(established, Ok(Ok(()))).then_some(guest)
    }

    fn refuse(&self, shared: &Shared, syn: &Packet<'_>, decided: sandboxvm_protocol::egress::Decided) -> Ended {
        replies::reset(&mut shared.link.outlet.borrow_mut(), syn);
        Ended { end: FlowEnd::NotEstablished, refused: Some(decided) }
    }

    fn fail(&self, shared: &Shared, syn: &Packet<'_>, failure: DialFailure) -> Ended {
        let mut outlet = shared.link.outlet.borrow_mut();
        match failure {
            DialFailure::Unreachable | DialFailure::TimedOut => {
                replies::unreachable(&mut outlet, syn.bytes, Unreachable::Host);
            }
            _ => replies::reset(&mut outlet, syn),
        }
        let refused = failure.is_refusal().then(|| refused(failure.to_string()));
        Ended { end: FlowEnd::NotEstablished, refused }
    }
}
