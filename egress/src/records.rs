//! What is reported of a guest's traffic: one record for each flow at its end, and refusals that are alike as one. However
//! much a guest does, the supervisor gets a bounded number of records, and the number of those that were left out.

use crate::rates::Bucket;
use sandboxvm_protocol::egress::{BlockedSecret, Decided, EgressEvent, FlowRecord, NameRecord, Transport};
use std::{
    collections::{HashMap, VecDeque},
    mem,
    net::IpAddr,
    rc::Rc,
    time::Instant,
};
use tokio::sync::Notify;

/// Maximum number of records in a second, after a burst of as many.
const PER_SECOND: u64 = 400;

/// Maximum number of kinds of refusals that are collected at the same time.
const MAX_ALIKE: usize = 256;

/// Maximum number of records that wait for the supervisor.
const MAX_WAITING: usize = 1024;

/// The records that are not reported yet.
#[derive(Debug)]
pub struct Records {
    flows: HashMap<AlikeFlows, FlowRecord>,
    names: HashMap<AlikeNames, NameRecord>,
    waiting: VecDeque<EgressEvent>,
    omitted: u64,
    rate: Bucket,
    notify: Rc<Notify>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AlikeFlows {
    transport: Transport,
    name: Option<String>,
    address: IpAddr,
    port: u16,
    why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AlikeNames {
    name: String,
    question: u16,
    why: Why,
}

/// The reason and the rule of a refusal. `None` for a name that was allowed and has no answer.
type Why = Option<(String, Option<String>)>;

impl Default for Records {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            names: HashMap::new(),
            waiting: VecDeque::new(),
            omitted: 0,
            rate: Bucket::new(PER_SECOND, Instant::now()),
            notify: Rc::new(Notify::new()),
        }
    }
}

impl Records {
    /// Reports a flow that has ended, or was refused. The refused ones wait for others like them until [`Self::collect`].
    pub fn flow(&mut self, record: FlowRecord) {
        let Some(why) = why(&record.decided) else { return self.push(EgressEvent::Flow(record)) };
        let key = AlikeFlows {
            transport: record.transport,
            name: record.name.clone(),
            address: record.address,
            port: record.port,
            why: Some(why),
        };
        if let Some(known) = self.flows.get_mut(&key) {
            known.count = known.count.saturating_add(record.count);
            known.bytes_out = known.bytes_out.saturating_add(record.bytes_out);
            known.bytes_in = known.bytes_in.saturating_add(record.bytes_in);
        } else if self.flows.len() < MAX_ALIKE {
            self.flows.insert(key, record);
        } else {
            self.omit(record.count.into());
        }
    }

    /// Reports a question that was refused or had no answer.
    pub fn name(&mut self, record: NameRecord) {
        let key = AlikeNames { name: record.name.clone(), question: record.question, why: why(&record.decided) };
        if let Some(known) = self.names.get_mut(&key) {
            known.count = known.count.saturating_add(record.count);
        } else if self.names.len() < MAX_ALIKE {
            self.names.insert(key, record);
        } else {
            self.omit(record.count.into());
        }
    }

    /// Reports a secret's placeholder where it may not go.
    pub fn blocked(&mut self, record: BlockedSecret) {
        self.push(EgressEvent::Blocked(record));
    }

    /// Ends the collecting of refusals that are alike. Call it about once in a second.
    pub fn collect(&mut self) {
        for record in mem::take(&mut self.flows).into_values() {
            self.push(EgressEvent::Flow(record));
        }
        for record in mem::take(&mut self.names).into_values() {
            self.push(EgressEvent::Name(record));
        }
        if self.omitted > 0 {
            self.notify.notify_one();
        }
    }

    /// Takes the next event for the supervisor.
    pub fn take(&mut self) -> Option<EgressEvent> {
        if let Some(event) = self.waiting.pop_front() {
            return Some(event);
        }
        let omitted = mem::take(&mut self.omitted);
        (omitted > 0).then_some(EgressEvent::Omitted(omitted))
    }

    /// Returns what is notified when there are events.
    #[must_use]
    pub fn notify(&self) -> Rc<Notify> {
        Rc::clone(&self.notify)
    }

    fn push(&mut self, event: EgressEvent) {
        if self.waiting.len() >= MAX_WAITING || !self.rate.take(Instant::now()) {
            let count = match &event {
                EgressEvent::Flow(record) => record.count,
                EgressEvent::Name(record) => record.count,
                _ => 1,
            };
            return self.omit(count.into());
        }
        self.waiting.push_back(event);
        self.notify.notify_one();
    }

    fn omit(&mut self, count: u64) {
        self.omitted = self.omitted.saturating_add(count);
    }
}

fn why(decided: &Decided) -> Why {
    match decided {
        Decided::Allowed(_) => None,
        Decided::Refused { reason, rule } => Some((reason.clone(), rule.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::egress::FlowEnd;

    fn refused(port: u16) -> FlowRecord {
        FlowRecord {
            transport: Transport::Tcp,
            name: None,
            address: IpAddr::from([198, 51, 100, 1]),
            port,
            decided: Decided::Refused { reason: "no rule allows it".to_owned(), rule: None },
            bytes_out: 0,
            bytes_in: 0,
            millis: 0,
            end: FlowEnd::NotEstablished,
            count: 1,
        }
    }

    fn drain(records: &mut Records) -> Vec<EgressEvent> {
        std::iter::from_fn(|| records.take()).collect()
    }

    #[test]
    fn refusals_that_are_alike_come_as_one_with_their_number() {
        let mut records = Records::default();
        for _ in 0..1000 {
            records.flow(refused(443));
        }
        records.flow(refused(80));
        assert!(drain(&mut records).is_empty());
        records.collect();
        let mut counts: Vec<_> = drain(&mut records)
            .into_iter()
            .map(|event| match event {
                EgressEvent::Flow(record) => (record.port, record.count),
                other => panic!("{other:?}"),
            })
            .collect();
        counts.sort_unstable();
        assert_eq!(counts, [(80, 1), (443, 1000)]);
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut records = Records::default();
        for port in 1..=5000 {
            records.flow(refused(port));
            records.flow(FlowRecord { decided: Decided::Allowed(None), ..refused(port) });
            records.name(NameRecord {
                name: format!("n{port}.example"),
                question: 1,
                decided: Decided::Allowed(None),
                count: 1,
            });
        }
        records.collect();
        let (mut told, mut omitted) = (0, 0);
        for event in drain(&mut records) {
            match event {
                EgressEvent::Omitted(count) => omitted += count,
                _ => told += 1,
            }
        }
        assert!((PER_SECOND..=PER_SECOND + 50).contains(&told), "{told}");
        assert_eq!(told + omitted, 15_000);
    }
}
