//! The link to one guest: its outlet, the clock and the timers of its TCP connections, and which of them wait until the
//! VMM takes frames again.

use super::{guest_end::GuestEnd, outlet::Outlet};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The link to one guest.
pub struct Link {
    /// The way of frames to the guest.
    pub outlet: RefCell<Outlet>,
    began: Instant,
    timers: RefCell<BTreeMap<(Instant, u64), Weak<GuestEnd>>>,
    waiting: RefCell<VecDeque<Rc<GuestEnd>>>,
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
            end.resume();
        }
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

    pub(super) fn set_timer(&self, at: Instant, id: u64, end: Weak<GuestEnd>) {
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
    pub(super) fn wait(&self, end: Rc<GuestEnd>) {
        self.waiting.borrow_mut().push_back(end);
        if self.outlet.borrow().is_free() {
            self.changed.notify_one();
        }
    }
}
