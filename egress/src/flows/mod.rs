//! What becomes of a guest's packets: the table of its flows, and the gateway that leads each packet to its flow, begins
//! new ones within the limits, and ends those that new settings do not allow.

mod account;
mod datagrams;
mod decision;
mod key;
mod opening;
mod questions;
mod requests;
mod splice;
mod tcp;
mod terminated;
mod watch;

use crate::{
    dialing::Dialing,
    resolver::Resolver,
    session::{Session, refused},
    stack::{
        addresses::is_gateway,
        link::Link,
        packet::{self, Content, Inbound, Packet},
        replies::{self, Unreachable},
    },
};
use account::{Account, Ended};
use datagrams::DatagramFlow;
use decision::{Verdict, begun, still};
use key::Key;
use sandboxvm_egress_policy::name::DomainName;
use sandboxvm_protocol::egress::{
    Decided, FlowEnd, FlowRecord, MAX_SAVED_PINS, NetworkSettings, SavedPin, TrafficCounters,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};
use tcp::TcpFlow;

/// Maximum number of flows of a sandbox, whatever its limits say.
pub const MAX_FLOWS: usize = 4096;

/// A sandbox's gateway.
#[derive(Debug)]
pub struct Gateway {
    link: Rc<Link>,
    session: Rc<RefCell<Session>>,
    dialing: Rc<Dialing>,
    resolver: Resolver,
    table: RefCell<HashMap<Key, Entry>>,
    questions: Rc<Cell<usize>>,
    ignored: Cell<u64>,
}

#[derive(Debug)]
enum Entry {
    Tcp(Rc<TcpFlow>),
    Datagrams(Rc<DatagramFlow>),
}

impl Entry {
    fn account(&self) -> &Account {
        match self {
            Self::Tcp(flow) => &flow.account,
            Self::Datagrams(flow) => &flow.account,
        }
    }
}

impl Gateway {
    /// Returns a gateway without flows. Its packets have to be handled in a `LocalSet`.
    #[must_use]
    pub fn new(link: Rc<Link>, session: Rc<RefCell<Session>>, dialing: Rc<Dialing>) -> Rc<Self> {
        let resolver = Resolver::new(Rc::clone(&dialing), Rc::clone(&session));
        Rc::new(Self {
            link,
            session,
            dialing,
            resolver,
            table: RefCell::default(),
            questions: Rc::default(),
            ignored: Cell::new(0),
        })
    }

    /// Handles a frame of the guest.
    pub fn handle(self: &Rc<Self>, frame: &[u8]) {
        match packet::read(frame) {
            Inbound::Arp { source, target } => replies::arp(&mut self.link.outlet.borrow_mut(), source, target),
            Inbound::Neighbor { source, target } => {
                replies::neighbor(&mut self.link.outlet.borrow_mut(), source, target);
            }
            Inbound::Packet(packet) => self.route(&packet),
            Inbound::Other => self.ignored.set(self.ignored.get() + 1),
        }
    }

    fn route(self: &Rc<Self>, packet: &Packet<'_>) {
        let key = Key::of(packet);
        match packet.content {
            Content::Tcp { begins, .. } => {
                let flow = match self.table.borrow().get(&key) {
                    Some(Entry::Tcp(flow)) => Some(Rc::clone(flow)),
                    _ => None,
                };
                match flow {
                    Some(flow) => flow.receive(packet),
                    None if begins => self.begin(key, packet),
                    None => replies::reset(&mut self.link.outlet.borrow_mut(), packet),
                }
            }
            Content::Udp { to: 53, .. } => questions::over_udp(self, packet),
            Content::Echo { .. } if is_gateway(packet.destination) => {
                replies::echo(&mut self.link.outlet.borrow_mut(), packet);
            }
            Content::Udp { .. } | Content::Echo { .. } => {
                let flow = match self.table.borrow().get(&key) {
                    Some(Entry::Datagrams(flow)) => Some(Rc::clone(flow)),
                    _ => None,
                };
                match flow {
                    Some(flow) => flow.receive(self, packet),
                    None => self.begin(key, packet),
                }
            }
        }
    }

    /// Begins a flow, or refuses it immediately. What is refused allocates nothing that stays, apart from its record.
    fn begin(self: &Rc<Self>, key: Key, packet: &Packet<'_>) {
        let verdict = begun(&self.session.borrow(), &key);
        let decided = match verdict {
            Verdict::Refuse(decided) => return self.refuse(key, packet, decided),
            Verdict::Forward(_, decided) => decided,
            Verdict::Resolve | Verdict::Inspect(..) => Decided::Allowed(None),
        };
        {
            let mut session = self.session.borrow_mut();
            let max = usize::try_from(session.settings.limits.flows).unwrap_or(MAX_FLOWS).min(MAX_FLOWS);
            let why = if self.open() >= max {
                Some("there are too many flows at the same time")
            } else if !session.rates.flows.take(Instant::now()) {
                Some("there are too many new flows in a second")
            } else {
                session.counters.flows += 1;
                None
            };
            drop(session);
            if let Some(why) = why {
                return self.refuse(key, packet, refused(why));
            }
        }
        let account = Account::new(Rc::clone(&self.session), key, decided);
        let first = Box::from(packet.bytes);
        match packet.content {
            Content::Tcp { .. } => {
                let flow = TcpFlow::new(account);
                self.table.borrow_mut().insert(key, Entry::Tcp(Rc::clone(&flow)));
                tokio::task::spawn_local(flow.run(Rc::clone(self), first));
            }
            Content::Udp { .. } | Content::Echo { .. } => {
                let flow = DatagramFlow::new(account);
                flow.receive(self, packet);
                self.table.borrow_mut().insert(key, Entry::Datagrams(Rc::clone(&flow)));
                tokio::task::spawn_local(flow.run(Rc::clone(self), first));
            }
        }
    }

    fn refuse(&self, key: Key, packet: &Packet<'_>, decided: Decided) {
        replies::refuse(&mut self.link.outlet.borrow_mut(), packet, Unreachable::Prohibited);
        let ended = Ended::from(FlowEnd::NotEstablished);
        self.report(Account::new(Rc::clone(&self.session), key, decided).record(ended));
    }

    /// Takes new settings, and ends the flows that they do not allow.
    ///
    /// # Errors
    /// When they cannot be read. Everything is refused then.
    pub fn configure(&self, settings: NetworkSettings) -> Result<(), String> {
        let result = self.session.borrow_mut().configure(settings).map_err(|error| error.to_string());
        let session = self.session.borrow();
        for (key, entry) in self.table.borrow().iter() {
            let account = entry.account();
            if let Err(decided) = still(&session, key, &account.known.borrow(), account.is_inspected.get()) {
                *account.decided.borrow_mut() = decided;
                account.end(FlowEnd::Cut);
            }
        }
        result
    }

    /// Forgets all flows without a word to the guest: the machine behind the link is another one.
    pub fn forget_flows(&self) {
        for entry in self.table.borrow().values() {
            entry.account().forget();
        }
    }

    /// Returns the pins that are alive, for a copy of the machine.
    #[must_use]
    pub fn pins(&self) -> Vec<SavedPin> {
        let session = self.session.borrow();
        let saved = |(address, name, left): (_, &DomainName, Duration)| SavedPin {
            name: name.to_string(),
            address,
            seconds: u32::try_from(left.as_secs()).unwrap_or(u32::MAX),
        };
        // The oldest first, so that the copy keeps their order.
        let mut pins: Vec<_> = session.pins.alive(Instant::now()).take(MAX_SAVED_PINS).map(saved).collect();
        pins.reverse();
        pins
    }

    /// Returns what was counted.
    #[must_use]
    pub fn counters(&self) -> TrafficCounters {
        let open = u32::try_from(self.open()).unwrap_or(u32::MAX);
        TrafficCounters { open, ..self.session.borrow().counters }
    }

    /// Returns the number of frames that were none of anything that is answered.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored.get()
    }

    fn open(&self) -> usize {
        self.table.borrow().len()
    }

    fn link(&self) -> &Rc<Link> {
        &self.link
    }

    fn session(&self) -> &Rc<RefCell<Session>> {
        &self.session
    }

    fn dialing(&self) -> &Dialing {
        &self.dialing
    }

    fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    fn forget(&self, key: &Key) {
        self.table.borrow_mut().remove(key);
    }

    fn report(&self, record: FlowRecord) {
        let mut session = self.session.borrow_mut();
        if matches!(record.decided, Decided::Refused { .. }) {
            session.counters.refused += u64::from(record.count);
        }
        session.records.flow(record);
    }

    /// Takes one of `max` places for questions without an answer.
    fn slot(&self, max: usize) -> Option<Slot> {
        let taken = self.questions.get();
        (taken < max).then(|| {
            self.questions.set(taken + 1);
            Slot(Rc::clone(&self.questions))
        })
    }
}

/// A place that is free again when this is dropped.
#[derive(Debug)]
struct Slot(Rc<Cell<usize>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
