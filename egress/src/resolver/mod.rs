//! The resolver of a sandbox: the only one that its guest reaches. The policy decides about each name before anything is
//! asked, and each address of an answer is held to the floor and pinned to the name that was asked for before the guest
//! sees it.
//!
//! A CNAME does not lead around the policy: the name that was asked for decides, and that name alone is pinned.

mod cache;
mod exchange;
mod local;
pub mod query;
pub mod question;
pub mod reply;
pub mod upstream_answer;

use crate::{
    dialing::Dialing,
    session::{self, Session},
};
use cache::{Cache, Kept, Key};
use domain::base::{
    Ttl,
    iana::{Rcode, Rtype},
};
use local::Local;
use query::Parsed;
use question::Query;
use reply::{PlainRecord, Reply, Verdict};
use sandboxvm_egress_policy::{pins::MAX_LIFE, policy::Decision};
use sandboxvm_protocol::egress::{Decided, NameRecord, ResolverTransport};
use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::OnceCell;
use upstream_answer::Found;

/// Maximum number of questions that are asked at the same time.
const MAX_ASKED: usize = 128;

/// How long a name that no resolver answers is not asked for again.
const FAILED_LIFE: Duration = Duration::from_secs(2);

/// Types of records that a guest gets. Others do not exist for it.
const TYPES: [Rtype; 12] = [
    Rtype::A,
    Rtype::AAAA,
    Rtype::CNAME,
    Rtype::HTTPS,
    Rtype::SVCB,
    Rtype::PTR,
    Rtype::MX,
    Rtype::TXT,
    Rtype::SRV,
    Rtype::NS,
    Rtype::SOA,
    Rtype::CAA,
];

/// The resolver of a sandbox.
#[derive(Debug)]
pub struct Resolver {
    dialing: Rc<Dialing>,
    session: Rc<RefCell<Session>>,
    cache: RefCell<Cache>,
    /// Questions that are being asked. Those who ask the same wait for the same answer.
    asked: RefCell<HashMap<Key, Rc<OnceCell<Option<Kept>>>>>,
    /// Questions that failed lately.
    failed: RefCell<HashMap<Key, Instant>>,
}

impl Resolver {
    /// Returns the resolver.
    #[must_use]
    pub fn new(dialing: Rc<Dialing>, session: Rc<RefCell<Session>>) -> Self {
        let (cache, asked, failed) = Default::default();
        Self { dialing, session, cache, asked, failed }
    }

    /// Answers one query of the guest, as it came. None: no answer at all (not a query). The caller limits their rate and
    /// their number at the same time.
    pub async fn answer(&self, query: &[u8], over: ResolverTransport) -> Option<Vec<u8>> {
        match query::parse(query, over) {
            Parsed::Nothing => None,
            Parsed::Answered(reply) => Some(reply),
            Parsed::Query(query) => {
                let verdict = self.decide(&query).await;
                Some(Reply::to(&query, verdict))
            }
        }
    }

    async fn decide(&self, query: &Query) -> Verdict {
        if let Some(verdict) = self.decide_here(query) {
            return verdict;
        }
        let Some(kept) = self.look_up((query.name.clone(), query.rtype)).await else {
            self.record_allowed(query);
            return Verdict::Code(Rcode::SERVFAIL);
        };
        // The settings may have changed while others were asked.
        self.decide_here(query).unwrap_or_else(|| self.allowed(query, &kept))
    }

    /// Decides without a question to others. None: they have to be asked.
    fn decide_here(&self, query: &Query) -> Option<Verdict> {
        let mut session = self.session.borrow_mut();
        let session = &mut *session;
        let asked = session.policy.asked(&query.name);
        let blocked = match (local::find(&query.name, query.rtype, &session.settings), asked) {
            // A name of the settings or of the host says nothing about others, and grants nothing.
            (Some(found), _) if session.settings.reach != sandboxvm_protocol::egress::Reach::Nothing => {
                session.counters.queries += 1;
                return Some(match found {
                    Local::Missing => Verdict::Code(Rcode::NXDOMAIN),
                    Local::Addresses(addresses) => {
                        let now = Instant::now();
                        for address in &addresses {
                            session.pins.pin(&query.name, *address, local::LIFE, now);
                        }
                        Verdict::Records(local::records(query, &addresses))
                    }
                });
            }
            (_, Decision::Refuse(refusal, rule)) => {
                let decided = session::reported(&Decision::Refuse(refusal, rule));
                (refusal.to_string(), decided)
            }
            (_, Decision::Allow(_) | Decision::Inspect) => {
                let below = query::reversed(&query.name).and_then(|address| session.floor.check(address).err());
                match below {
                    // Names of hosts that the guest cannot reach are none of its business.
                    Some(below) => (below.to_string(), session::refused(below.to_string())),
                    None if TYPES.contains(&query.rtype) => return None,
                    None => return Some(Verdict::Records(Vec::new())),
                }
            }
        };
        session.counters.refused += 1;
        session.records.name(name_record(query, blocked.1));
        Some(Verdict::Blocked(blocked.0))
    }

    /// Returns what the guest may see of an answer, and pins its addresses.
    fn allowed(&self, query: &Query, kept: &Kept) -> Verdict {
        let now = Instant::now();
        if kept.found.is_missing {
            self.record_allowed(query);
            return Verdict::Code(Rcode::NXDOMAIN);
        }
        let mut session = self.session.borrow_mut();
        let session = &mut *session;
        session.counters.queries += 1;
        let age = u32::try_from(now.saturating_duration_since(kept.since).as_secs()).unwrap_or(u32::MAX);
        let longest = u32::try_from(MAX_LIFE.as_secs()).unwrap_or(u32::MAX);
        let (mut records, mut below, mut addresses) = (Vec::new(), None, 0);
        for record in &kept.found.records {
            let mut record = record.clone();
            // Never longer than the pin lives.
            let ttl = record.ttl().as_secs().saturating_sub(age).min(longest);
            record.set_ttl(Ttl::from_secs(ttl));
            if let Some(address) = address(&record) {
                match session.floor.check(address) {
                    Ok(plain) => {
                        addresses += 1;
                        session.pins.pin(&query.name, plain, Duration::from_secs(ttl.into()), now);
                    }
                    Err(reason) => {
                        let decided = session::refused(format!("the answer {address} is not passed on: {reason}"));
                        session.records.name(name_record(query, decided));
                        below = Some(reason);
                        continue;
                    }
                }
            }
            records.push(record);
        }
        match below {
            // The name exists, and may have addresses of the other version. The chain to the hidden ones is hidden too.
            Some(reason) if addresses == 0 => {
                session.counters.refused += 1;
                Verdict::Withheld(reason.to_string())
            }
            _ => Verdict::Records(records),
        }
    }

    async fn look_up(&self, key: Key) -> Option<Kept> {
        let now = Instant::now();
        let (resolvers, tenants) = {
            let session = self.session.borrow();
            let tenants = session.settings.dns.clone();
            let own = u8::try_from(tenants.len()).unwrap_or(u8::MAX);
            (if tenants.is_empty() { session.resolvers } else { own }, tenants)
        };
        self.cache.borrow_mut().use_resolvers(&tenants);
        if let Some(kept) = self.cache.borrow().get(&key, now) {
            return Some(kept);
        }
        if self.failed.borrow().get(&key).is_some_and(|until| now < *until) {
            return None;
        }
        let cell = {
            let mut asked = self.asked.borrow_mut();
            if !asked.contains_key(&key) && asked.len() >= MAX_ASKED {
                return None;
            }
            Rc::clone(asked.entry(key.clone()).or_default())
        };
        let asking = Asking { resolver: self, key: &key, cell: Rc::clone(&cell) };
        let ask = async {
            let found = exchange::ask(&self.dialing, resolvers, &key.0, key.1).await;
            let now = Instant::now();
            let kept = found.map(|found: Found| Kept { found: Rc::new(found), since: now });
            match &kept {
                Some(kept) if self.session.borrow().settings.dns == tenants => {
                    self.cache.borrow_mut().put(key.clone(), kept.clone());
                }
                Some(_) => {}
                None => self.note_failure(&key, now),
            }
            kept
        };
        let kept = cell.get_or_init(|| ask).await.clone();
        drop(asking);
        kept
    }

    fn note_failure(&self, key: &Key, now: Instant) {
        let mut failed = self.failed.borrow_mut();
        if failed.len() >= MAX_ASKED {
            failed.retain(|_, until| now < *until);
        }
        if failed.len() < MAX_ASKED {
            failed.insert(key.clone(), now + FAILED_LIFE);
        }
    }

    fn record_allowed(&self, query: &Query) {
        let mut session = self.session.borrow_mut();
        let session = &mut *session;
        let decided = session::reported(&session.policy.asked(&query.name));
        session.counters.queries += 1;
        session.records.name(name_record(query, decided));
    }
}

/// A question that is being asked. It is forgotten when the last who waits for its answer has it, or waits no longer.
struct Asking<'r> {
    resolver: &'r Resolver,
    key: &'r Key,
    cell: Rc<OnceCell<Option<Kept>>>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.resolver.asked.borrow_mut();
        let is_this = asked.get(self.key).is_some_and(|cell| Rc::ptr_eq(cell, &self.cell));
        // The map's, this one, and that of the function that is about to end.
        if is_this && (self.cell.initialized() || Rc::strong_count(&self.cell) <= 3) {
            asked.remove(self.key);
        }
    }
}

fn name_record(query: &Query, decided: Decided) -> NameRecord {
    NameRecord { name: query.name.to_string(), question: query.rtype.to_int(), decided, count: 1 }
}

fn address(record: &PlainRecord) -> Option<IpAddr> {
    let data = record.data().data().as_slice();
    match record.rtype() {
        Rtype::A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        Rtype::AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    }
}
