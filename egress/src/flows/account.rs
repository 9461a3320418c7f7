//! What is known of one flow for its record: the decision, its name, what passed, and whether it has to end.

use super::{
    decision::{Known, MAX_KEPT, Verdict, begun},
    key::Key,
};
use crate::{rates::Way, session::Session};
use sandboxvm_egress_policy::{name::DomainName, policy::Shown};
use sandboxvm_protocol::egress::{Decided, FlowEnd, FlowRecord};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How a flow ended, and the refusal if one ended it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub end: FlowEnd,
    /// Why it was refused after it had begun.
    pub refused: Option<Decided>,
}

impl From<FlowEnd> for Ended {
    fn from(end: FlowEnd) -> Self {
        Self { end, refused: None }
    }
}

/// The account of one flow.
#[derive(Debug)]
pub struct Account {
    session: Rc<RefCell<Session>>,
    /// Which flow.
    pub key: Key,
    began: Instant,
    /// The decision so far.
    pub decided: RefCell<Decided>,
    /// What it has shown so far.
    pub known: RefCell<Known>,
    /// True while its first bytes are waited for.
    pub is_inspected: Cell<bool>,
    out: Cell<u64>,
    back: Cell<u64>,
    last: Cell<Instant>,
    ending: Cell<Option<FlowEnd>>,
    ended: Notify,
}

impl Account {
    /// Returns the account of a flow that begins now.
    #[must_use]
    pub fn new(session: Rc<RefCell<Session>>, key: Key, decided: Decided) -> Self {
        let now = Instant::now();
        let mut pinned = names(&session.borrow(), &key);
        pinned.truncate(MAX_KEPT);
        Self {
            session,
            key,
            began: now,
            decided: RefCell::new(decided),
            known: RefCell::new(Known { pinned, ..Known::default() }),
            is_inspected: Cell::new(false),
            out: Cell::new(0),
            back: Cell::new(0),
            last: Cell::new(now),
            ending: Cell::new(None),
            ended: Notify::new(),
        }
    }

    /// Returns true for a connection to the resolver.
    #[must_use]
    pub fn is_resolver(&self) -> bool {
        matches!(begun(&self.session.borrow(), &self.key), Verdict::Resolve)
    }

    /// Returns the state that the sandbox's flows share.
    #[must_use]
    pub fn session(&self) -> &Rc<RefCell<Session>> {
        &self.session
    }

    /// Counts bytes that passed.
    pub fn passed(&self, way: Way, bytes: usize) {
        let counter = match way {
            Way::Out => &self.out,
            Way::In => &self.back,
        };
        counter.set(counter.get() + bytes as u64);
        self.last.set(Instant::now());
        let mut session = self.session.borrow_mut();
        match way {
            Way::Out => session.counters.bytes_out += bytes as u64,
            Way::In => session.counters.bytes_in += bytes as u64,
        }
        session.rates.passed(way, bytes);
    }

    /// Waits until the limit on bytes lets more pass.
    pub async fn wait(&self, way: Way) {
        loop {
            let wait = self.session.borrow_mut().rates.wait(way);
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return,
            }
        }
    }

    /// Returns true if the limit on bytes lets some pass now.
    #[must_use]
    pub fn may_pass(&self, way: Way) -> bool {
        self.session.borrow_mut().rates.wait(way).is_none()
    }

    /// Notes what the flow has shown.
    pub fn show(&self, shown: Shown) {
        let mut known = self.known.borrow_mut();
        if let Shown::Name(name) = &shown {
            let is_new = known.pinned.len() < MAX_KEPT && !known.pinned.contains(name);
            if is_new && names(&self.session.borrow(), &self.key).contains(name) {
                known.pinned.push(name.clone());
            }
            known.name = Some(name.clone());
        }
        known.shown = Some(shown);
    }

    /// Returns true if anything came from the other end.
    #[must_use]
    pub fn is_replied(&self) -> bool {
        self.back.get() > 0
    }

    /// Waits until nothing has passed for `time`.
    pub async fn idle(&self, time: impl Fn() -> Duration) {
        loop {
            let until = self.last.get() + time();
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// Makes the flow end.
    pub fn end(&self, end: FlowEnd) {
        self.ending.set(Some(end));
        self.ended.notify_one();
    }

    /// Waits until the flow is made to end.
    pub async fn ending(&self) -> FlowEnd {
        loop {
            if let Some(end) = self.ending.get() {
                return end;
            }
            self.ended.notified().await;
        }
    }

    /// Returns the record of the flow.
    #[must_use]
    pub fn record(&self, ended: Ended) -> FlowRecord {
        let known = self.known.borrow();
        // Without a name of its own it is the one that led to its address, if there is only one.
        let name = known.name.as_ref().or(match &known.pinned[..] {
            [name] => Some(name),
            _ => None,
        });
        FlowRecord {
            transport: self.key.transport,
            name: name.map(ToString::to_string),
            address: self.key.address,
            port: self.key.port,
            decided: ended.refused.unwrap_or_else(|| self.decided.borrow().clone()),
            bytes_out: self.out.get(),
            bytes_in: self.back.get(),
            millis: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            end: ended.end,
            count: 1,
        }
    }
}

/// The names that led to the address of a flow.
fn names(session: &Session, key: &Key) -> Vec<DomainName> {
    let plain = session.floor.check(key.address);
    plain.map(|address| session.pins.names_of(address, Instant::now())).unwrap_or_default()
}
