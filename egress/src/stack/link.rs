//! The link to one guest: its outlet, the clock and the timers of its TCP connections, and which of them wait until the
//! VMM takes frames again.

use super::outlet::Outlet;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Up to this length, the list of waiting connections may hold some that have ended.
const MIN_CLEARED: usize = 64;

/// Maximum number of connections that are kept to be reset. Each holds its buffers.
const MAX_RESET: usize = 64;

/// What sends on a link: the guest's end of a connection.
pub(super) trait Sender {
    /// Its timer has expired.
    fn run_timer(&self);

    /// The outlet is free again.
    fn resume(&self);
}

/// The link to one guest.
pub struct Link {
    /// The way of frames to the guest.
    pub outlet: RefCell<Outlet>,
    began: Instant,
    timers: RefCell<BTreeMap<(Instant, u64), Weak<dyn Sender>>>,
    /// Weak, so that a guest that takes no frames keeps no connection in memory that has ended.
    waiting: RefCell<VecDeque<Weak<dyn Sender>>>,
    /// Those of `waiting` that were reset and whose guest does not know it yet. The oldest is dropped for a new one: its
    /// guest finds out when it sends.
    reset: RefCell<VecDeque<Rc<dyn Sender>>>,
    /// Length of `waiting` at which those that have ended are removed from it.
    cleared_at: Cell<usize>,
    /// Notified when the first timer is earlier than before, or a connection has more to send than it may at one time.
    changed: Notify,
    next_id: Cell<u64>,
    seeds: RandomState,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Returns the link over `outlet`. [`Self::drive`] has to run as long as it is in use.
    #[must_use]
    pub fn new(outlet: Outlet) -> Rc<Self> {
        Rc::new(Self {
            outlet: RefCell::new(outlet),
            began: Instant::now(),
            timers: RefCell::default(),
            waiting: RefCell::default(),
            reset: RefCell::default(),
            cleared_at: Cell::new(MIN_CLEARED),
            changed: Notify::new(),
            next_id: Cell::new(0),
            seeds: RandomState::new(),
        })
    }

    /// Runs timers, and the connections that waited for the outlet. Never returns.
    pub async fn drive(&self) {
        loop {
            self.run_due(Instant::now());
            self.resume();
            let next = self.timers.borrow().first_key_value().map(|((at, _), _)| *at);
            let is_waiting = !self.waiting.borrow().is_empty() && self.outlet.borrow().is_free();
            let sleep = async {
                match next {
                    _ if is_waiting => tokio::task::yield_now().await,
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep => {}
            }
        }
    }

    /// Lets connections send that waited for the outlet, each a bounded number of frames.
    pub fn resume(&self) {
        let count = self.waiting.borrow().len();
        for _ in 0..count {
            if !self.outlet.borrow().is_free() {
                return;
            }
            let Some(end) = self.waiting.borrow_mut().pop_front() else { return };
            if let Some(end) = end.upgrade() {
                end.resume();
            }
        }
        if self.waiting.borrow().is_empty() {
            self.reset.borrow_mut().clear();
        }
    }

    /// Keeps a connection that was reset while it waited, until it has sent that.
    pub(super) fn keep(&self, end: Rc<dyn Sender>) {
        let mut reset = self.reset.borrow_mut();
        if reset.len() >= MAX_RESET {
            reset.pop_front();
        }
        reset.push_back(end);
    }

    /// Number of connections that wait, those that have ended included.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    fn run_due(&self, now: Instant) {
        loop {
            let due = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return,
                }
            };
            if let Some(end) = due.upgrade() {
                end.run_timer();
            }
        }
    }

    /// The time as smoltcp counts it.
    pub(super) fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    /// The moment of smoltcp's `at`, which is at least a millisecond from now.
    pub(super) fn moment(&self, at: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        (self.began + Duration::from_micros(micros)).max(Instant::now() + Duration::from_millis(1))
    }

    /// A number that no connection had before, and one that a guest cannot guess.
    pub(super) fn identify(&self) -> (u64, u64) {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        (id, self.seeds.hash_one(id))
    }

    pub(super) fn set_timer(&self, at: Instant, id: u64, end: Weak<dyn Sender>) {
        let mut timers = self.timers.borrow_mut();
        let is_first = timers.first_key_value().is_none_or(|((first, _), _)| at < *first);
        timers.insert((at, id), end);
        if is_first {
            self.changed.notify_one();
        }
    }

    pub(super) fn clear_timer(&self, at: Instant, id: u64) {
        self.timers.borrow_mut().remove(&(at, id));
    }

    /// Lets `end` send later.
    pub(super) fn wait(&self, end: Weak<dyn Sender>) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= self.cleared_at.get() {
            waiting.retain(|end| end.strong_count() > 0);
            self.cleared_at.set(MIN_CLEARED.max(2 * waiting.len()));
        }
        waiting.push_back(end);
        drop(waiting);
        if self.outlet.borrow().is_free() {
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            guest_end::GuestEnd,
            packet::{Inbound, packet_of},
        },
        *,
    };
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use tokio::io::unix::AsyncFd;

    /// A SYN from a port of the guest to 1.1.1.1, port 53.
    fn syn(port: u16) -> [u8; 40] {
        let mut packet = [0; 40];
        packet[..12].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet[12..20].copy_from_slice(&[198, 18, 0, 2, 1, 1, 1, 1]);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[22..24].copy_from_slice(&[0, 53]);
        packet[32..36].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
        let sum = (0..10).fold(0_u32, |sum, at| {
            if at == 5 { sum } else { sum + u32::from(u16::from_be_bytes([packet[at * 2], packet[at * 2 + 1]])) }
        });
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
        packet
    }

    #[tokio::test]
    async fn connections_that_end_while_the_guest_takes_no_frames_are_not_kept() {
        let (ours, _guests) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
        // SAFETY: the descriptor of an `OwnedFd` stays the same and open until that is dropped.
        let socket = Rc::new(unsafe { AsyncFd::register(ours) }.unwrap());
        while rustix::net::send(socket.get_ref(), &[0; 1000], rustix::net::SendFlags::DONTWAIT).is_ok() {}
        let link = Link::new(Outlet::new(socket));
        let open = |port| {
            let syn = syn(port);
            let Inbound::Packet(packet) = packet_of(&syn) else { panic!("{:?}", packet_of(&syn)) };
            GuestEnd::open(&link, &packet, 4096).unwrap()
        };
        // The first one's frame is in the outlet, and all others wait for it.
        let _first = open(1);
        let kept: Vec<_> = (2..12).map(open).collect();
        let mut ended = Vec::new();
        for port in 100..2100 {
            let end = open(port);
            if port % 2 == 0 {
                end.abort();
            }
            ended.push(Rc::downgrade(&end));
        }
        let alive = ended.iter().filter(|end| end.strong_count() > 0).count();
        assert_eq!(alive, MAX_RESET, "those that were reset last");
        assert!(link.waiting() < 4 * (MAX_RESET + kept.len()), "{}", link.waiting());
    }
}
