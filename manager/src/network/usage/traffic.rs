//! Turns what an egress process reports into audit lines, of which there are never too many: a
//! guest can cause any number of reports, and an egress process that was taken over can send them.
//!
//! Something that is refused is one line when it happens first, and then one line a minute with the
//! number of repeats. All lines together have a rate, and what exceeds it is counted.

use crate::audit::{Event, NetworkDecision};
use sandboxvm_protocol::{
    egress::{BlockedSecret, Decided, FlowRecord, NameRecord, Transport},
    network::{GATEWAY_IPV4, GATEWAY_IPV6},
};
use std::{collections::HashMap, net::IpAddr, time::Duration};
use tokio::time::Instant;

/// Maximum number of lines at the same time.
const BURST: u32 = 500;
/// Maximum number of lines in a second after that.
const PER_SECOND: u32 = 20;
/// How long repeats of something that was refused are counted before they are logged.
const COUNTED_FOR: Duration = Duration::from_secs(60);
/// Maximum number of refused things whose repeats are counted. Of others every report is a line.
const MAX_COUNTED: usize = 512;
/// Maximum length in bytes of a text in a line: the longest name, and some room.
const MAX_TEXT: usize = 320;

/// What makes two refusals alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Refused {
    Flow(Transport, Option<String>, IpAddr, u16, NetworkDecision),
    Name(String, u16, NetworkDecision),
}

/// Something that was refused and logged, and repeats since.
#[derive(Debug)]
struct Repeats {
    line: Event,
    count: u64,
    until: Instant,
}

/// The lines of one sandbox.
#[derive(Debug)]
pub(crate) struct Traffic {
    repeats: HashMap<Refused, Repeats>,
    /// Lines that may be written now.
    left: u32,
    filled_at: Instant,
    omitted: u64,
}

impl Traffic {
    pub(crate) fn new(now: Instant) -> Self {
        Self { repeats: HashMap::new(), left: BURST, filled_at: now, omitted: 0 }
    }

    /// Returns the line of a flow, if it is to be written now. `has_proxy` says whether the dialer has an
    /// upstream proxy.
    pub(crate) fn flow(&mut self, flow: FlowRecord, has_proxy: bool, now: Instant) -> Option<Event> {
        let FlowRecord { transport, name, address, port, decided, bytes_out, bytes_in, millis, end, count } = flow;
        let (name, decision) = (name.map(short), decision(decided));
        let alike =
            (!decision.allowed).then(|| Refused::Flow(transport, name.clone(), address, port, decision.clone()));
        let count = u64::from(count.max(1));
        // Services of the host are at the gateway's address, and are reached without it.
        let is_of_host = address == GATEWAY_IPV4 || address == GATEWAY_IPV6;
        let proxied = has_proxy && decision.allowed && transport == Transport::Tcp && !is_of_host;
        let line = Event::NetworkFlow {
            transport,
            name,
            address,
            port,
            decision,
            proxied,
            bytes_out,
            bytes_in,
            millis,
            end,
            count,
        };
        self.log(line, alike, count, now)
    }

    /// Returns the line of a question, if it is to be written now.
    pub(crate) fn name(&mut self, name: NameRecord, now: Instant) -> Option<Event> {
        let NameRecord { name, question, decided, count } = name;
        let (name, decision, count) = (short(name), decision(decided), u64::from(count.max(1)));
        let alike = Refused::Name(name.clone(), question, decision.clone());
        self.log(Event::NetworkName { name, question, decision, count }, Some(alike), count, now)
    }

    /// Returns the line of a secret that was held back, if it is to be written now.
    pub(crate) fn blocked(&mut self, blocked: BlockedSecret, now: Instant) -> Option<Event> {
        let BlockedSecret { secret, host, reason } = blocked;
        let line = Event::SecretBlocked { secret: short(secret), host: short(host), reason: short(reason) };
        self.log(line, None, 1, now)
    }

    /// Counts what was not reported.
    pub(crate) fn omitted(&mut self, records: u64) {
        self.omitted = self.omitted.saturating_add(records);
    }

    /// Returns when [`Self::due`] is to be called next.
    pub(crate) fn next(&self) -> Option<Instant> {
        let omitted = (self.omitted > 0).then(|| self.filled_at + COUNTED_FOR);
        self.repeats.values().map(|repeats| repeats.until).chain(omitted).min()
    }

    /// Returns the lines that are due.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Event> {
        self.take(|repeats| repeats.until <= now)
    }

    /// Returns all lines, at the end.
    pub(crate) fn all(&mut self) -> Vec<Event> {
        self.take(|_| true)
    }

    fn take(&mut self, is_due: impl Fn(&Repeats) -> bool) -> Vec<Event> {
        let due = self.repeats.extract_if(|_, repeats| is_due(repeats));
        // At most one line a minute for each of a bounded number: these need no rate.
        let mut lines: Vec<Event> = due
            .map(|(_, repeats)| repeats)
            .filter(|repeats| repeats.count > 0)
            .map(|repeats| counted(repeats.line, repeats.count))
            .collect();
        if self.omitted > 0 {
            lines.push(Event::NetworkOmitted { records: std::mem::take(&mut self.omitted) });
        }
        lines
    }

    fn log(&mut self, line: Event, alike: Option<Refused>, count: u64, now: Instant) -> Option<Event> {
        if let Some(alike) = alike {
            if let Some(repeats) = self.repeats.get_mut(&alike) {
                repeats.count = repeats.count.saturating_add(count);
                return None;
            }
            if self.repeats.len() < MAX_COUNTED {
                self.repeats.insert(alike, Repeats { line: line.clone(), count: 0, until: now + COUNTED_FOR });
            }
        }
        let seconds = u32::try_from(now.duration_since(self.filled_at).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.left = self.left.saturating_add(seconds.saturating_mul(PER_SECOND)).min(BURST);
            self.filled_at = now;
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.omitted(count);
            return None;
        };
        self.left = left;
        Some(line)
    }
}

/// Returns the line of `count` repeats.
fn counted(mut line: Event, repeats: u64) -> Event {
    if let Event::NetworkFlow { count, .. } | Event::NetworkName { count, .. } = &mut line {
        *count = repeats;
    }
    line
}

fn decision(decided: Decided) -> NetworkDecision {
    match decided {
        Decided::Allowed(rule) => NetworkDecision { allowed: true, rule: rule.map(short), reason: None },
        Decided::Refused { reason, rule } => {
            NetworkDecision { allowed: false, rule: rule.map(short), reason: Some(short(reason)) }
        }
    }
}

/// Cuts a text that is longer than any honest one.
fn short(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::egress::FlowEnd;

    fn refused(port: u16) -> FlowRecord {
        FlowRecord {
            transport: Transport::Tcp,
            name: None,
            address: [192, 0, 2, 1].into(),
            port,
            decided: Decided::Refused { reason: "no rule allows it".into(), rule: None },
            bytes_out: 0,
            bytes_in: 0,
            millis: 0,
            end: FlowEnd::NotEstablished,
            count: 1,
        }
    }

    fn count(line: &Event) -> u64 {
        match line {
            Event::NetworkFlow { count, .. } | Event::NetworkName { count, .. } => *count,
            Event::NetworkOmitted { records } => *records,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn repeats_of_a_refusal_are_counted_and_logged_a_minute_later() {
        let start = Instant::now();
        let mut traffic = Traffic::new(start);
        assert_eq!(count(&traffic.flow(refused(80), false, start).unwrap()), 1);
        for _ in 0..9 {
            assert_eq!(traffic.flow(refused(80), false, start), None);
        }
        assert_eq!(count(&traffic.flow(refused(81), false, start).unwrap()), 1, "another port is not alike");
        let later = traffic.next().unwrap();
        assert_eq!(later, start + COUNTED_FOR);
        assert!(traffic.due(start).is_empty());
        let lines = traffic.due(later);
        assert_eq!(lines.iter().map(count).collect::<Vec<_>>(), [9], "what was not repeated is not repeated");
        assert_eq!(traffic.next(), None);
        assert!(traffic.flow(refused(80), false, later).is_some(), "a minute later it is new again");
    }

    #[test]
    fn allowed_flows_are_lines_up_to_a_rate() {
        let start = Instant::now();
        let mut traffic = Traffic::new(start);
        let allowed = || FlowRecord { decided: Decided::Allowed(None), ..refused(443) };
        let lines =
            |traffic: &mut Traffic, now| (0..1000).filter(|_| traffic.flow(allowed(), false, now).is_some()).count();
        assert_eq!(lines(&mut traffic, start), BURST as usize);
        assert_eq!(lines(&mut traffic, start + Duration::from_secs(2)), 2 * PER_SECOND as usize);
        let due = traffic.due(traffic.next().unwrap());
        assert_eq!(due.iter().map(count).sum::<u64>(), 2000 - u64::from(BURST) - 2 * u64::from(PER_SECOND));
    }

    #[test]
    fn lines_say_what_the_proxy_carried() {
        let now = Instant::now();
        let mut traffic = Traffic::new(now);
        let allowed = || FlowRecord { decided: Decided::Allowed(None), ..refused(443) };
        let mut is_proxied = |flow, has_proxy| match traffic.flow(flow, has_proxy, now) {
            Some(Event::NetworkFlow { proxied, .. }) => proxied,
            other => panic!("{other:?}"),
        };
        assert!(is_proxied(allowed(), true) && !is_proxied(allowed(), false));
        assert!(!is_proxied(refused(443), true));
        assert!(!is_proxied(FlowRecord { address: GATEWAY_IPV4.into(), ..allowed() }, true), "a service of the host");
    }

    #[test]
    fn reports_of_a_hostile_process_use_bounded_memory() {
        let now = Instant::now();
        let mut traffic = Traffic::new(now);
        let long = "\u{e9}".repeat(100_000);
        let mut longest = 0;
        for port in 0..20_000 {
            let record = FlowRecord { name: Some(long.clone()), count: u32::MAX, ..refused(port) };
            if let Some(line) = traffic.flow(record, false, now) {
                longest = longest.max(serde_json::to_string(&line).unwrap().len());
            }
        }
        assert!(traffic.repeats.len() <= MAX_COUNTED && longest < 2000, "{longest}");
        assert!(traffic.all().len() <= MAX_COUNTED + 1 && traffic.next().is_none());
    }
}
