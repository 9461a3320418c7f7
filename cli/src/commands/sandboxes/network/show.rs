//! `network show`: shows what a sandbox reaches, and whether its network works.

use crate::{
    environment,
    failure::Failure,
    output::{json, size},
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{NetworkReport, NetworkSpec, Reach, Rule, ValueSource, one_line};
use serde::Serialize;

/// Show what a sandbox reaches on the network
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    /// True if the machine has a network card.
    card: bool,
    /// What it reaches.
    network: Option<NetworkSpec>,
    /// The proxy that carries its connections: its own, or the operator's. Without user and password.
    proxy: Option<String>,
    /// Whether the card has a link, and what passed. Absent if no supervisor runs.
    link: Option<NetworkReport>,
}

impl Show {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = environment::manager()?.find(&self.sandbox)?;
        let network = sandbox.network()?;
        let link = runtime::block_on(async { Ok(sandbox.network_report().await?) })?;
        let proxy = sandbox.upstream_proxy()?.map(|proxy| proxy.to_string());
        let shown = Shown { card: sandbox.has_network_card(), network, proxy, link };
        stdio::print(&if self.json { json::pretty(&shown)? } else { text(&shown) })?;
        Ok(0)
    }
}

fn text(shown: &Shown) -> String {
    let Some(network) = &shown.network else {
        return if shown.card { "no network: the card has no link\n" } else { "no network: the machine has no card\n" }
            .to_owned();
    };
    let mut lines = vec![format!("reaches  {}", reaches(network.reach))];
    let mut list = |heading: &str, texts: Vec<String>| {
        for (at, text) in texts.into_iter().enumerate() {
            lines.push(format!("{:<9}{text}", if at == 0 { heading } else { "" }));
        }
    };
    let rules = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
    list("allow", rules(&network.allow));
    list("deny", rules(&network.deny));
    list("dns", network.dns.iter().map(ToString::to_string).collect());
    list("hosts", network.hosts.iter().map(|host| format!("{} {}", host.name, host.address)).collect());
    let secrets = network.secrets.iter().map(|secret| {
        let source = match &secret.value {
            ValueSource::File(path) => format!(" from {}", path.display()),
            ValueSource::Given(_) | ValueSource::Kept | ValueSource::KeptAs(_) => String::new(),
        };
        format!("{} for {}{source}", secret.name, secret.hosts.join(", "))
    });
    list("secrets", secrets.collect());
    let headers = network.header_rules.iter().map(|rule| {
        let names: Vec<&str> = rule.headers.iter().map(|header| header.name.as_str()).collect();
        format!("{} for {}", names.join(", "), rule.host)
    });
    list("headers", headers.collect());
    let of_operator = if network.proxy.is_none() { " (the operator's)" } else { "" };
    list("proxy", shown.proxy.iter().map(|proxy| format!("{proxy}{of_operator}")).collect());
    list("link", vec![shown.link.as_ref().map_or_else(|| "down: no supervisor runs".to_owned(), link)]);
    if let Some(count) = shown.link.as_ref().map(|link| link.unlogged).filter(|count| *count > 0) {
        list("log", vec![format!("{count} lines are missing: the sandbox has used its part of the audit log")]);
    }
    if let Some(counters) = shown.link.as_ref().and_then(|link| link.counters) {
        let flows = format!("{} allowed, {} open, {} refused", counters.flows, counters.open, counters.refused);
        list("flows", vec![flows]);
        list("queries", vec![counters.queries.to_string()]);
        let bytes = format!("{} out, {} in", size::of(counters.bytes_out), size::of(counters.bytes_in));
        list("bytes", vec![bytes]);
    }
    lines.join("\n") + "\n"
}

fn link(report: &NetworkReport) -> String {
    let problem = report.problem.as_deref().map(|problem| format!(": {}", one_line(problem))).unwrap_or_default();
    let restarts = match report.restarts {
        0 => String::new(),
        count => format!(" (its processes were replaced {count} times)"),
    };
    format!("{}{problem}{restarts}", if report.attached { "up" } else { "down" })
}

fn reaches(reach: Reach) -> &'static str {
    match reach {
        Reach::Nothing => "nothing",
        Reach::Listed => "what is allowed",
        Reach::Public => "the public internet",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;
    use sandboxvm_manager::{HostName, ProxySpec, TrafficCounters};
    use std::str::FromStr;

    /// A network with an element in every list.
    pub(crate) fn example_network() -> NetworkSpec {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        NetworkSpec {
            reach: Reach::Listed,
            allow: rules(&["index.example", "host:5432"]),
            deny: rules(&["ads.example"]),
            dns: vec![[192, 0, 2, 53].into()],
            proxy: Some(ProxySpec {
                password: Some(ValueSource::Kept),
                ..ProxySpec::from_str("socks5://me@proxy.example:1080").unwrap()
            }),
            hosts: vec![HostName { name: "db.example".into(), address: [192, 0, 2, 7].into() }],
            ..NetworkSpec::default()
        }
    }

    /// The same with a proxy that wants no login.
    pub(crate) fn with_plain_proxy() -> NetworkSpec {
        NetworkSpec { proxy: Some("http://192.0.2.8:3128".parse().unwrap()), ..example_network() }
    }

    fn example() -> Shown {
        let counters =
            TrafficCounters { flows: 12, refused: 3, open: 1, queries: 9, bytes_out: 4096, bytes_in: 3 << 20 };
        let link = NetworkReport { attached: true, problem: None, restarts: 1, unlogged: 2, counters: Some(counters) };
        let proxy = Some("socks5://proxy.example:1080".to_owned());
        Shown { card: true, network: Some(example_network()), proxy, link: Some(link) }
    }

    #[test]
    fn json_is_pinned() {
        let down = NetworkReport { problem: Some("the egress process was killed".into()), ..NetworkReport::default() };
        let down = Shown { network: Some(with_plain_proxy()), link: Some(down), ..example() };
        let operators = Shown { network: Some(NetworkSpec { proxy: None, ..example_network() }), ..example() };
        assert!(text(&operators).contains("proxy    socks5://proxy.example:1080 (the operator's)\n"));
        assert_golden("network-show-operator.json", &json::pretty(&operators).unwrap());
        let none = Shown { card: false, network: None, proxy: None, link: None };
        assert_golden("network-show.json", &json::pretty(&example()).unwrap());
        assert_golden("network-show-down.json", &json::pretty(&down).unwrap());
        assert_golden("network-show-none.json", &json::pretty(&none).unwrap());
    }

    #[test]
    fn settings_and_link_are_listed() {
        let expected = "reaches  what is allowed\nallow    index.example\n         host:5432\ndeny     ads.example\n\
                        dns      192.0.2.53\nhosts    db.example 192.0.2.7\n\
                        proxy    socks5://proxy.example:1080\n\
                        link     up (its processes were replaced 1 times)\n\
                        log      2 lines are missing: the sandbox has used its part of the audit log\nflows    12 allowed, 1 open, 3 refused\n\
                        queries  9\nbytes    4.0 KiB out, 3.0 MiB in\n";
        assert_eq!(text(&example()), expected);
        let unsupervised = Shown { link: None, ..example() };
        assert!(text(&unsupervised).contains("link     down: no supervisor runs\n"));
        assert_eq!(
            text(&Shown { card: true, network: None, proxy: None, link: None }),
            "no network: the card has no link\n"
        );
    }
}
