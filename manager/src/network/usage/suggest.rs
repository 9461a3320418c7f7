//! Suggests rules: the smallest set that covers what a sandbox used, from its audit log. What was
//! refused is apart, because a hostile guest can ask for anything; nothing is applied.

use crate::audit::{Event, NetworkDecision};
use sandboxvm_egress_policy::rule::Rule;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// Maximum number of rules in each list.
const MAX_RULES: usize = 1024;

/// Rules for what a sandbox did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// Rules for what it used, sorted by bytes, descending.
    pub used: Vec<SuggestedRule>,
    /// Rules for what it was refused, most frequent first.
    pub refused: Vec<SuggestedRule>,
    /// Uses for which there is no rule, because a name is not a domain name, or there are too many.
    pub without_rule: u64,
    /// Uses that were not logged, because there were too many.
    pub omitted: u64,
}

/// A rule, and what it would cover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SuggestedRule {
    /// The rule.
    #[serde(serialize_with = "text")]
    pub rule: Rule,
    /// Number of connections and questions.
    pub count: u64,
    /// Bytes that the guest sent.
    pub bytes_out: u64,
    /// Bytes that it received.
    pub bytes_in: u64,
    /// Why it was refused.
    pub reason: Option<String>,
}

fn text<S: Serializer>(rule: &Rule, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(rule)
}

/// Collects the lines of a log.
#[derive(Debug, Default)]
pub struct Suggester {
    used: BTreeMap<String, SuggestedRule>,
    refused: BTreeMap<String, SuggestedRule>,
    without_rule: u64,
    omitted: u64,
}

impl Suggester {
    /// Adds a line. Lines that are not about the network are ignored.
    pub fn add(&mut self, event: &Event) {
        let (decision, count, out, into) = match event {
            Event::NetworkFlow { decision, count, bytes_out, bytes_in, .. } => {
                (decision, *count, *bytes_out, *bytes_in)
            }
            Event::NetworkName { decision, count, .. } => (decision, *count, 0, 0),
            Event::NetworkOmitted { records } => {
                self.omitted = self.omitted.saturating_add(*records);
                return;
            }
            _ => return,
        };
        // No rule would help.
        if event.failure_of_proxy().is_some() {
            return;
        }
        // A name that was allowed and has no answer needs no rule.
        if decision.allowed && matches!(event, Event::NetworkName { .. }) {
            return;
        }
        let rules = if decision.allowed { &mut self.used } else { &mut self.refused };
        let Some(rule) = event.rule_for_it().filter(|rule| {
            let key = rule.to_string();
            rules.len() < MAX_RULES || rules.contains_key(&key)
        }) else {
            self.without_rule = self.without_rule.saturating_add(count);
            return;
        };
        let NetworkDecision { reason, .. } = decision;
        let entry = rules.entry(rule.to_string()).or_insert_with(|| SuggestedRule {
            rule,
            count: 0,
            bytes_out: 0,
            bytes_in: 0,
            reason: reason.clone(),
        });
        entry.count = entry.count.saturating_add(count);
        entry.bytes_out = entry.bytes_out.saturating_add(out);
        entry.bytes_in = entry.bytes_in.saturating_add(into);
    }

    /// Returns the rules. One that is within another is left out.
    #[must_use]
    pub fn suggestion(self) -> Suggestion {
        let Self { used, refused, without_rule, omitted } = self;
        let mut used = smallest(used.into_values().collect());
        used.sort_by_key(|rule| std::cmp::Reverse((rule.bytes_out.saturating_add(rule.bytes_in), rule.count)));
        let refused =
            refused.into_values().filter(|refused| !used.iter().any(|used| refused.rule.is_within(&used.rule)));
        let mut refused = smallest(refused.collect());
        refused.sort_by_key(|rule| std::cmp::Reverse(rule.count));
        Suggestion { used, refused, without_rule, omitted }
    }
}

/// Adds each rule that is within another one to that.
fn smallest(rules: Vec<SuggestedRule>) -> Vec<SuggestedRule> {
    let mut kept: Vec<SuggestedRule> = Vec::new();
    for rule in rules {
        // No two rules are the same, so at most one of two is within the other.
        let (within, others): (Vec<_>, Vec<_>) = kept.into_iter().partition(|kept| kept.rule.is_within(&rule.rule));
        kept = others;
        let sum = |mut sum: SuggestedRule, other: &SuggestedRule| {
            sum.count = sum.count.saturating_add(other.count);
            sum.bytes_out = sum.bytes_out.saturating_add(other.bytes_out);
            sum.bytes_in = sum.bytes_in.saturating_add(other.bytes_in);
            sum
        };
        let rule = within.iter().fold(rule, sum);
        match kept.iter_mut().find(|kept| rule.rule.is_within(&kept.rule)) {
            Some(wider) => *wider = sum(wider.clone(), &rule),
            None => kept.push(rule),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::egress::{FlowEnd, Transport};

    fn flow(name: Option<&str>, port: u16, allowed: bool, bytes_in: u64) -> Event {
        Event::NetworkFlow {
            transport: Transport::Tcp,
            name: name.map(str::to_owned),
            address: [192, 0, 2, 1].into(),
            port,
            decision: NetworkDecision {
                allowed,
                rule: None,
                reason: (!allowed).then(|| "no rule allows it".to_owned()),
            },
            proxied: false,
            bytes_out: 1,
            bytes_in,
            millis: 1,
            end: FlowEnd::Closed,
            count: 1,
        }
    }

    fn suggest(events: &[Event]) -> Suggestion {
        let mut suggester = Suggester::default();
        events.iter().for_each(|event| suggester.add(event));
        suggester.suggestion()
    }

    fn texts(rules: &[SuggestedRule]) -> Vec<String> {
        rules.iter().map(|rule| format!("{} {} {}", rule.rule, rule.count, rule.bytes_in)).collect()
    }

    #[test]
    fn used_names_become_the_fewest_rules_with_counts() {
        let suggestion = suggest(&[
            flow(Some("index.example"), 443, true, 10),
            flow(Some("git.example"), 22, true, 5),
            flow(Some("index.example"), 80, true, 100),
            flow(Some("index.example"), 8443, true, 1),
            flow(None, 5000, true, 1),
            Event::Paused,
            Event::NetworkOmitted { records: 3 },
        ]);
        assert_eq!(
            texts(&suggestion.used),
            ["index.example 3 111", "git.example:22/tcp 1 5", "192.0.2.1:5000/tcp 1 1"]
        );
        assert_eq!((suggestion.refused.len(), suggestion.omitted, suggestion.without_rule), (0, 3, 0));
    }

    #[test]
    fn refused_names_are_apart_and_odd_ones_have_no_rule() {
        let name = |name: &str, count| Event::NetworkName {
            name: name.into(),
            question: 1,
            decision: NetworkDecision { allowed: false, rule: None, reason: Some("no rule allows it".into()) },
            count,
        };
        let suggestion = suggest(&[
            name("a.example", 2),
            name("b.example", 7),
            name("index.example", 1),
            name("x\"\n]\nallow = [\"*\"", 4),
            flow(Some("index.example"), 443, true, 10),
            flow(Some("a.example"), 443, false, 0),
            name("xn--bcher-kva.example", 1),
        ]);
        assert_eq!(texts(&suggestion.used), ["index.example 1 10"]);
        assert_eq!(texts(&suggestion.refused), ["b.example 7 0", "a.example 3 0", "xn--bcher-kva.example 1 0"]);
        assert_eq!(suggestion.without_rule, 4);
    }

    #[test]
    fn lists_are_bounded() {
        let events: Vec<Event> = (0..3000).map(|n| flow(Some(&format!("h{n}.example")), 443, false, 0)).collect();
        let suggestion = suggest(&events);
        assert_eq!((suggestion.refused.len(), suggestion.without_rule), (MAX_RULES, 3000 - MAX_RULES as u64));
    }
}
