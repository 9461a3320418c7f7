//! `network log`: shows what a sandbox used and was refused, and what would allow it.

use crate::{
    commands::host::events::{self, Reader},
    environment,
    failure::Failure,
    stdio,
};
use clap::Args;
use sandboxvm_manager::{
    Advice, DialFailure, FlowEnd, Transport,
    audit::{Event, Line, NetworkDecision},
    one_line,
};
use std::time::Duration;

/// Show what a sandbox used on the network, and what it was refused
#[derive(Debug, Args)]
#[command(
    after_help = "A connection is shown when it has ended. Something that is refused again and again is shown once a minute, \
                  with the number of times."
)]
pub(crate) struct Log {
    /// Name or ID of a sandbox, or the full ID of a removed one
    sandbox: String,
    /// Keep showing new lines until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Print the lines of the audit log, each a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Log {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        let trail = events::trail(&manager, &self.sandbox)?;
        let mut reader = Reader::of(manager, Some(trail));
        self.print(reader.next()?)?;
        if self.follow { reader.follow(|lines| self.print(lines)) } else { Ok(0) }
    }

    fn print(&self, lines: Vec<(Line, String)>) -> Result<(), Failure> {
        let shown = lines.into_iter().filter_map(|(line, text)| {
            let shown = show(&self.sandbox, &line.event)?;
            let time = humantime::format_rfc3339_millis(line.time);
            Some(if self.json { text + "\n" } else { format!("{time} {shown}\n") })
        });
        stdio::print(&shown.collect::<String>())
    }
}

/// Formats an event of the network. Names in it are a guest's.
fn show(sandbox: &str, event: &Event) -> Option<String> {
    let text = match event {
        Event::NetworkFlow {
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
        } => {
            let to = if *transport == Transport::Icmp { address.to_string() } else { at(*address, *port) };
            let name = name.as_deref().map(|name| format!(" {}", one_line(name))).unwrap_or_default();
            let what = format!("{}{name} {to}", word(*transport));
            if decision.allowed {
                let took = humantime::format_duration(Duration::from_millis(*millis));
                let end = ended(*end);
                let proxied = if *proxied { " through the proxy" } else { "" };
                format!(
                    "allowed {what}{proxied}{}: {bytes_out} bytes out, {bytes_in} in, {end} after {took}",
                    rule(decision)
                )
            } else {
                refused(&what, decision, *count)
            }
        }
        Event::NetworkName { name, question, decision, count } => {
            let what = format!("{} of {}", kind(*question), one_line(name));
            if decision.allowed {
                format!("no answer for {what}{}", times(*count))
            } else {
                refused(&what, decision, *count)
            }
        }
        Event::NetworkSet { reach, allow, deny, secrets, proxy } => {
            let reach = serde_json::to_value(reach).unwrap_or_default();
            let secrets = match &secrets[..] {
                [] => String::new(),
                secrets => format!(", secrets [{}]", secrets.join(", ")),
            };
            let proxy = proxy.as_deref().map(|proxy| format!(", proxy {}", one_line(proxy))).unwrap_or_default();
            format!(
                "set to {}, allow [{}], deny [{}]{secrets}{proxy}",
                reach.as_str().unwrap_or_default(),
                allow.join(", "),
                deny.join(", ")
            )
        }
        Event::SecretBlocked { secret, host, reason } => {
            format!("blocked secret {} to {}: {}", one_line(secret), one_line(host), one_line(reason))
        }
        Event::NetworkOmitted { records } => format!("omitted {records} more, because there were too many"),
        Event::NetworkUnlogged => "no more lines: the sandbox has used its part of the audit log".to_owned(),
        Event::NetworkRestarted { reason } => format!("replaced the processes of the network: {}", one_line(reason)),
        _ => return None,
    };
    Some(match event.network_advice() {
        Some(Advice::Allow(rule)) => {
            format!("{text}; to allow it: sandboxvm network set {sandbox} --add --allow {rule}")
        }
        Some(Advice::NoDeny(_)) => format!("{text}; to allow it, set the network without that rule"),
        Some(Advice::Operator(_)) => {
            format!("{text}; only the operator can open it, below [operator] in ~/.config/sandboxvm/network.toml")
        }
        Some(Advice::Proxy(failure)) => format!("{text}; {}", of_proxy(failure, sandbox)),
        None => text,
    })
}

/// Returns what helps against a failure of the upstream proxy.
fn of_proxy(failure: DialFailure, sandbox: &str) -> String {
    let show = format!("`sandboxvm network show {sandbox}` shows the proxy");
    match failure {
        DialFailure::NotProxied => "set the network without the proxy, or use TCP".to_owned(),
        DialFailure::ProxyForbidden => "only the operator's proxy may have such an address".to_owned(),
        DialFailure::ProxyUnreachable => format!("check that it runs and that this host reaches it: {show}"),
        DialFailure::ProxyLogin => {
            "set the network with --proxy and the user name and password that it wants".to_owned()
        }
        _ => format!("its own rules or the peer may be the reason: {show}"),
    }
}

fn refused(what: &str, decision: &NetworkDecision, count: u64) -> String {
    let reason = decision.reason.as_deref().unwrap_or("no rule allows it");
    format!("refused {what}{}: {}{}", times(count), one_line(reason), rule(decision))
}

fn rule(decision: &NetworkDecision) -> String {
    decision.rule.as_deref().map(|rule| format!(" (rule {})", one_line(rule))).unwrap_or_default()
}

fn times(count: u64) -> String {
    if count > 1 { format!(" {count} times") } else { String::new() }
}

fn at(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::from((address, port)).to_string()
}

fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::Icmp => "icmp",
    }
}

fn ended(end: FlowEnd) -> &'static str {
    match end {
        FlowEnd::Closed => "closed",
        FlowEnd::Reset => "reset",
        FlowEnd::NotEstablished => "not established",
        FlowEnd::Idle => "idle",
        FlowEnd::Cut => "cut",
    }
}

/// Returns what a question of DNS asks for.
fn kind(question: u16) -> String {
    match question {
        1 => "address".to_owned(),
        28 => "IPv6 address".to_owned(),
        5 => "alias".to_owned(),
        15 => "mail servers".to_owned(),
        16 => "text".to_owned(),
        64 | 65 => "service parameters".to_owned(),
        other => format!("record {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(name: Option<&str>, allowed: bool, rule: Option<&str>) -> Event {
        Event::NetworkFlow {
            transport: Transport::Tcp,
            name: name.map(str::to_owned),
            address: [1, 1, 1, 1].into(),
            port: 443,
            decision: NetworkDecision {
                allowed,
                rule: rule.map(str::to_owned),
                reason: (!allowed).then(|| "no rule allows it".into()),
            },
            proxied: false,
            bytes_out: 10,
            bytes_in: 2000,
            millis: 1500,
            end: FlowEnd::Closed,
            count: 3,
        }
    }

    fn shown(event: &Event) -> String {
        show("demo", event).unwrap()
    }

    #[test]
    fn refusals_say_what_to_type_to_allow_them() {
        let line = shown(&flow(Some("index.example"), false, None));
        let expected = "refused tcp index.example 1.1.1.1:443 3 times: no rule allows it; to allow it: sandboxvm network set \
                        demo --add --allow index.example";
        assert_eq!(line, expected);
        let denied = shown(&flow(Some("ads.example"), false, Some("*.example")));
        assert!(denied.contains("(rule *.example); to allow it, set the network without that rule"), "{denied}");
        let hostile = shown(&flow(Some("a\u{1b}[2J\nx"), false, None));
        assert!(hostile.contains("a\\u{1b}[2J\\nx") && hostile.ends_with("--allow 1.1.1.1:443/tcp"), "{hostile}");
    }

    #[test]
    fn uses_are_shown_with_their_bytes() {
        let line = shown(&flow(Some("index.example"), true, Some("index.example")));
        let expected =
            "allowed tcp index.example 1.1.1.1:443 (rule index.example): 10 bytes out, 2000 in, closed after 1s 500ms";
        assert_eq!(line, expected);
        assert_eq!(show("demo", &Event::Paused), None);
    }
}
