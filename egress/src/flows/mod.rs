//! What becomes of a guest's packets: the table of its flows, and the gateway that leads each packet to its flow, begins
//! new ones within the limits, and ends those that new settings do not allow.

mod account;
mod datagrams;
mod decision;
mod key;
mod opening;
mod questions;
mod requests;
mod shared;
mod splice;
mod tcp;
mod terminated;
mod watch;

use crate::{
    dialing::Dialing,
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
use shared::Shared;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};
use tcp::TcpFlow;
use tokio::task::spawn_local;

/// Maximum number of flows of a sandbox, whatever its limits say.
pub const MAX_FLOWS: usize = 4096;

/// A sandbox's gateway.
#[derive(Debug)]
pub struct Gateway {
    shared: Rc<Shared>,
    table: RefCell<HashMap<Key, Entry>>,
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
        let shared = Rc::new(Shared::new(link, session, dialing));
        Rc::new(Self { shared, table: RefCell::default(), ignored: Cell::new(0) })
    }

    /// Handles a frame of the guest.
    pub fn handle(self: &Rc<Self>, frame: &[u8]) {
        match packet::read(frame) {
            Inbound::Arp { source, target } => replies::arp(&mut self.shared.link.outlet.borrow_mut(), source, target),
            Inbound::Neighbor { source, target } => {
                replies::neighbor(&mut self.shared.link.outlet.borrow_mut(), source, target);
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
                    None => replies::reset(&mut self.shared.link.outlet.borrow_mut(), packet),
                }
            }
            Content::Udp { to: 53, .. } => questions::over_udp(&self.shared, packet),
            Content::Echo { .. } if is_gateway(packet.destination) => {
                replies::echo(&mut self.shared.link.outlet.borrow_mut(), packet);
            }
            Content::Udp { .. } | Content::Echo { .. } => {
                let flow = match self.table.borrow().get(&key) {
                    Some(Entry::Datagrams(flow)) => Some(Rc::clone(flow)),
                    _ => None,
                };
                match flow {
                    Some(flow) => flow.receive(&self.shared, packet),
                    None => self.begin(key, packet),
                }
            }
        }
    }

    /// Begins a flow, or refuses it immediately. What is refused allocates nothing that stays, apart from its record.
    fn begin(self: &Rc<Self>, key: Key, packet: &Packet<'_>) {
        let verdict = begun(&self.shared.session.borrow(), &key);
        let decided = match verdict {
            Verdict::Refuse(decided) => return self.refuse(key, packet, decided),
            Verdict::Forward(_, decided) => decided,
            Verdict::Resolve | Verdict::Inspect(..) => Decided::Allowed(None),
        };
        {
            let mut session = self.shared.session.borrow_mut();
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
        let account = Account::new(Rc::clone(&self.shared.session), key, decided);
        let first: Box<[u8]> = packet.bytes.into();
        let gateway = Rc::clone(self);
        match packet.content {
            Content::Tcp { .. } => {
                let flow = TcpFlow::new(account);
                self.insert(key, Entry::Tcp(Rc::clone(&flow)));
                spawn_local(async move {
                    let ended = flow.run(&gateway.shared, &first).await;
                    gateway.remove(&key);
                    // Questions over TCP are reported as questions.
                    if !flow.account.is_resolver() {
                        gateway.report(flow.account.record(ended));
                    }
                });
            }
            Content::Udp { .. } | Content::Echo { .. } => {
                let flow = DatagramFlow::new(account);
                flow.receive(&self.shared, packet);
                self.insert(key, Entry::Datagrams(Rc::clone(&flow)));
                spawn_local(async move {
                    let ended = flow.run(&gateway.shared, &first).await;
                    gateway.remove(&key);
                    gateway.report(flow.account.record(ended));
                });
            }
        }
    }

    fn refuse(&self, key: Key, packet: &Packet<'_>, decided: Decided) {
        replies::refuse(&mut self.shared.link.outlet.borrow_mut(), packet, Unreachable::Prohibited);
        let ended = Ended::from(FlowEnd::NotEstablished);
        self.report(Account::new(Rc::clone(&self.shared.session), key, decided).record(ended));
    }

    /// Takes new settings, and ends the flows that they do not allow.
    ///
    /// # Errors
    /// When they cannot be read. Everything is refused then.
    pub fn configure(&self, settings: NetworkSettings) -> Result<(), String> {
        let result = self.shared.session.borrow_mut().configure(settings).map_err(|error| error.to_string());
        let session = self.shared.session.borrow();
        for (key, entry) in self.table.borrow().iter() {
            let account = entry.account();
            if let Err(decided) = still(&session, key, &account.known.borrow(), account.is_inspected.get()) {
                *account.decided.borrow_mut() = decided;
                account.end(FlowEnd::Cut);
            }
        }
        result
    }

    /// Returns the pins that are alive, for a copy of the machine.
    #[must_use]
    pub fn pins(&self) -> Vec<SavedPin> {
        let session = self.shared.session.borrow();
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
        TrafficCounters { open, ..self.shared.session.borrow().counters }
    }

    /// Returns the number of frames that were none of anything that is answered.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored.get()
    }

    fn open(&self) -> usize {
        self.table.borrow().len()
    }

    fn insert(&self, key: Key, entry: Entry) {
        self.table.borrow_mut().insert(key, entry);
        self.shared.open.set(self.open());
    }

    fn remove(&self, key: &Key) {
        self.table.borrow_mut().remove(key);
        self.shared.open.set(self.open());
    }

    fn report(&self, record: FlowRecord) {
        let mut session = self.shared.session.borrow_mut();
        if matches!(record.decided, Decided::Refused { .. }) {
            session.counters.refused += u64::from(record.count);
        }
        session.records.flow(record);
    }
}
