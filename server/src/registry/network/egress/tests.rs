//! What clients say, and what it means, with the texts of E2B where it has one.

use super::*;
use crate::config::network::tests::{network, public, rules};
use sandboxvm_manager::{HeaderSpec, SecretText, ValueSource};
use serde_json::{Value, json};

/// All of the network, as clients name it.
const ALL_TRAFFIC: &str = "0.0.0.0/0";

fn egress(json: Value) -> Egress {
    serde_json::from_value(json).unwrap()
}

fn texts(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

/// What a client gets from an operator whose default is the public internet.
fn public_spec(internet: Option<bool>, json: Value) -> NetworkSpec {
    egress(json).spec(internet, &network(public(), None)).unwrap()
}

fn refusal(json: Value) -> String {
    egress(json).spec(None, &network(public(), None)).unwrap_err().to_string()
}

#[test]
fn lists_mean_what_they_mean_with_e2b() {
    for internet in [None, Some(true)] {
        let all = public_spec(internet, json!({}));
        assert_eq!((all.reach, all.allow.len(), all.deny.len()), (Reach::Public, 0, 0));
    }
    for nothing in [
        public_spec(Some(false), json!({})),
        public_spec(Some(false), json!({"dnsServers": ["1.1.1.1"], "denyOut": ["8.8.8.8"]})),
        public_spec(None, json!({"denyOut": [ALL_TRAFFIC]})),
    ] {
        assert_eq!((nothing.reach, nothing.dns.len()), (Reach::Nothing, 0));
    }
    let some = public_spec(None, json!({"denyOut": ["10.0.0.0/8", "8.8.8.8/24", "2001:db8::1"]}));
    assert_eq!(
        (some.reach, texts(&some.deny)),
        (Reach::Public, vec!["10.0.0.0/8".into(), "8.8.8.0/24".into(), "2001:db8::1".into()])
    );

    let lists = json!({
        "allowOut": ["api.example.com", "*.corp.example", "1.1.1.1", "8.8.8.0/24", "git.example:22"],
        "denyOut": [ALL_TRAFFIC, "8.8.8.8"], "dnsServers": ["1.1.1.1"],
    });
    let listed = public_spec(None, lists);
    assert_eq!((listed.reach, listed.precedence), (Reach::Listed, Precedence::Allow));
    assert_eq!(texts(&listed.allow), ["api.example.com", "*.corp.example", "1.1.1.1", "8.8.8.0/24", "git.example:22"]);
    assert_eq!((texts(&listed.deny), listed.dns), (vec!["8.8.8.8".to_owned()], vec![IpAddr::from([1, 1, 1, 1])]));
    // Allowing addresses takes nothing away, and what is allowed stays so without the internet.
    assert_eq!(public_spec(None, json!({"allowOut": ["1.1.1.1"]})).reach, Reach::Public);
    let without = public_spec(Some(false), json!({"allowOut": ["1.1.1.1"]}));
    assert_eq!((without.reach, texts(&without.allow)), (Reach::Listed, vec!["1.1.1.1".to_owned()]));
}

#[test]
fn internet_is_what_the_operator_made_the_default() {
    let of = |json: Value, internet, default, permits| egress(json).spec(internet, &network(default, permits)).unwrap();
    for internet in [None, Some(true)] {
        assert_eq!(of(json!({}), internet, None, public()).reach, Reach::Nothing);
        let listed = of(json!({}), internet, rules(&["*.example"]), None);
        assert_eq!((listed.reach, texts(&listed.allow)), (Reach::Listed, vec!["*.example".to_owned()]));
    }
    assert_eq!(of(json!({}), Some(false), rules(&["*.example"]), None).reach, Reach::Nothing);
    // What the client denies narrows what the operator allows; its own list replaces that if everything else is denied.
    let narrowed = of(json!({"denyOut": ["192.0.2.1"]}), None, rules(&["192.0.2.0/24"]), None);
    assert_eq!((narrowed.precedence, texts(&narrowed.deny)), (Precedence::Deny, vec!["192.0.2.1".to_owned()]));
    let own = of(json!({"denyOut": [ALL_TRAFFIC], "allowOut": ["a.example"]}), None, rules(&["*.example"]), None);
    assert_eq!((own.precedence, texts(&own.allow)), (Precedence::Allow, vec!["a.example".to_owned()]));
    let more = of(json!({"allowOut": ["192.0.2.1"]}), None, None, public());
    assert_eq!((more.reach, texts(&more.allow)), (Reach::Listed, vec!["192.0.2.1".to_owned()]));
}

#[test]
fn errors_have_the_texts_of_e2b() {
    for wrong in ["not-a-cidr", "10.0.0.0/33", "", "*.example", "1.1.1.1/tcp/"] {
        assert_eq!(refusal(json!({"denyOut": [wrong]})), format!("invalid denied CIDR {wrong}"));
    }
    let domains = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all \
                   other traffic.";
    for (allow, deny) in
        [("a.example", json!([])), ("*.example", json!(["10.0.0.0/8"])), ("a.example:443", json!(["0.0.0.0/0:80"]))]
    {
        assert_eq!(refusal(json!({"allowOut": [allow], "denyOut": deny})), domains);
    }
    assert_eq!(
        refusal(json!({"allowOut": ["host:5432"], "denyOut": [ALL_TRAFFIC]})),
        "invalid allow out entry: host:5432: expected an IP address, a network or a domain"
    );
    for wrong in ["*", "a b", "http://a.example", "127.1", "ü.example"] {
        let text = refusal(json!({"allowOut": [wrong], "denyOut": [ALL_TRAFFIC]}));
        assert!(text.starts_with(&format!("invalid allow out entry: {wrong}: ")), "{text}");
    }
    for wrong in ["dns.example", "2001:4860:4860::8888", "1.1.1.1:53"] {
        assert_eq!(
            refusal(json!({"dnsServers": [wrong]})),
            format!("invalid DNS server {wrong}: expected an IPv4 address")
        );
    }
    assert_eq!(refusal(json!({"dnsServers": vec!["1.1.1.1"; 11]})), "too many dnsServers: 11, and the maximum is 10");
    let long = refusal(json!({"denyOut": ["x".repeat(100_000)]}));
    assert!(long.len() < 400);
    assert!(refusal(json!({"allowOut": vec!["1.1.1.1"; 1001]})).starts_with("too many entries of allowOut: 1001"));
}

#[test]
fn rules_set_headers_and_allow_nothing() {
    let rules = json!({
        "api.example.com": [{"transform": {"headers": {"Authorization": "Bearer hush", "X-A": "b"}}}],
        "*.corp.example": [{}], "plain.corp.example": [],
    });
    let spec = public_spec(None, json!({"rules": rules, "denyOut": [ALL_TRAFFIC], "allowOut": ["1.1.1.1"]}));
    assert_eq!(texts(&spec.allow), ["1.1.1.1"]);
    spec.check().unwrap();
    let header = |name: &str, value: &str| HeaderSpec {
        name: name.into(),
        value: ValueSource::Given(SecretText::new(value.into())),
    };
    let rule = |host: &str, headers| HeaderRuleSpec { host: host.into(), headers };
    assert_eq!(
        spec.header_rules,
        [
            rule("*.corp.example", vec![]),
            rule("api.example.com", vec![header("Authorization", "Bearer hush"), header("X-A", "b")]),
            rule("plain.corp.example", vec![]),
        ]
    );
    assert!(!format!("{spec:?}").contains("hush"));
    for nothing in [json!({"rules": rules, "denyOut": [ALL_TRAFFIC]}), json!({"rules": {}}), json!({})] {
        assert!(public_spec(None, nothing).header_rules.is_empty());
    }
    let words = egress(json!({"rules": rules, "allowOut": ["1.1.1.1"]}));
    assert_eq!(words.of_copy(), egress(json!({"allowOut": ["1.1.1.1"]})));
    assert!(words.has_secrets() && !words.of_copy().has_secrets());
    let largest: serde_json::Map<_, _> = (0..20).map(|n| (format!("X-{n:02}"), json!("x".repeat(2048)))).collect();
    public_spec(None, json!({"rules": {"a.example": [{"transform": {"headers": largest}}]}})).check().unwrap();
}

#[test]
fn headers_that_frame_a_request_and_rules_for_the_same_host_are_refused() {
    let problem = |rules: Value| public_spec(None, json!({"rules": rules})).check().unwrap_err().to_string();
    let with = |headers: Value| json!([{"transform": {"headers": headers}}]);
    assert_eq!(
        problem(json!({"a.example": with(json!({"Host": "b.example"}))})),
        "invalid header rule for \"a.example\": \"Host\" is not a header that can be set"
    );
    assert_eq!(
        problem(json!({"a.example": with(json!({"X-A": "1", "x-a": "2"}))})),
        "invalid header rule for \"a.example\": it sets the header \"x-a\" twice"
    );
    assert_eq!(
        problem(json!({"A.example": [], "a.example": []})),
        "invalid header rule for \"a.example\": there are two for this host"
    );
}

#[test]
fn rules_are_held_to_the_limits_of_e2b() {
    let rule = |headers: Value| json!([{"transform": {"headers": headers}}]);
    let many = |count: usize, value: Value| -> Value {
        (0..count).map(|n| (format!("h{n}.example"), value.clone())).collect::<serde_json::Map<_, _>>().into()
    };
    let marked = json!({"A": "x", "Authorization": "Bearer ${e2b.identity.tokens.aws}"});
    let unsupported = "network.rules for h0.example has a marker ${e2b...} in the header Authorization: tokens and secrets \
                       that E2B keeps are not supported by sandboxvm; give the value itself";
    for (rules, problem) in [
        (many(11, json!([])), "too many domains in network.rules: 11, and the maximum is 10"),
        (json!({"a.example": [{}, {}]}), "too many transforms of a domain in network.rules: 2, and the maximum is 1"),
        (
            json!({"a.example": rule(many(21, json!("x")))}),
            "too many headers of a domain in network.rules: 21, and the maximum is 20",
        ),
        (
            many(10, rule(json!({"A": "${e2b.secrets.A}${e2b.secrets.B}", "B": "${e2b.secrets.C}${e2b.secrets.D}"}))),
            "too many secrets in network.rules: 40, and the maximum is 32",
        ),
        (many(10, rule(marked)), unsupported),
        (
            json!({"1.1.1.1": []}),
            "invalid network rule for 1.1.1.1: expected a domain or *.domain of at most 128 bytes",
        ),
        (
            json!({"a.example:443": []}),
            "invalid network rule for a.example:443: expected a domain or *.domain of at most 128 bytes",
        ),
        (
            json!({"a.example": rule(json!({"A b": "x"}))}),
            "invalid network rule for a.example: expected names of headers with at most 64 bytes",
        ),
        (
            json!({"a.example": rule(json!({"A": "x\r\nB: y"}))}),
            "invalid network rule for a.example: expected a value of A with 1 to 2048 bytes",
        ),
        (
            json!({"a.example": rule(json!({"A": "x".repeat(2049)}))}),
            "invalid network rule for a.example: expected a value of A with 1 to 2048 bytes",
        ),
    ] {
        assert_eq!(refusal(json!({"rules": rules})), problem);
    }
    let unknown = json!({"rules": {"a.example": [{"inject": {}}]}});
    assert!(serde_json::from_value::<Egress>(unknown).is_err(), "what is not understood is not ignored");
}

#[test]
fn proxies_are_socks5_and_their_login_does_not_go_to_copies() {
    let with = |proxy: Value| json!({"egressProxy": proxy});
    let proxy = with(json!({"address": "proxy.example.com:1080", "username": "u", "password": "hush"}));
    let spec = public_spec(None, proxy.clone());
    spec.check().unwrap();
    let wanted = spec.proxy.unwrap();
    assert_eq!((wanted.to_string().as_str(), wanted.user.as_deref()), ("socks5://proxy.example.com:1080", Some("u")));
    assert_eq!(wanted.password, Some(ValueSource::Given(SecretText::new("hush".into()))));
    assert!(egress(proxy.clone()).has_secrets() && !egress(proxy.clone()).shown().has_secrets());
    assert_eq!(egress(proxy).of_copy(), egress(with(json!({"address": "proxy.example.com:1080"}))));
    let plain =
        with(json!({"address": "[2001:db8::1]:1080", "username": "", "password": "", "tls": {"enabled": false}}));
    let plain = public_spec(None, plain).proxy.unwrap();
    assert_eq!((plain.to_string().as_str(), plain.user, plain.password), ("socks5://[2001:db8::1]:1080", None, None));
    for wrong in ["proxy.example", "socks5://proxy.example:1", "me:hush@proxy.example:1", "", "a b"] {
        let refused = refusal(with(json!({"address": wrong})));
        assert_eq!(refused, "invalid egress proxy address: expected HOST:PORT", "{wrong}");
    }
    let alone = refusal(with(json!({"address": "proxy.example:1", "password": "hush"})));
    assert_eq!(alone, "invalid egress proxy: a password needs a user name");
    let host = refusal(with(json!({"address": "127.1:1080"})));
    assert!(host.starts_with("invalid egress proxy: invalid host \"127.1\""), "{host}");
}

#[test]
fn proxies_over_tls_are_refused_and_their_secrets_are_not_shown() {
    let proxy = json!({"egressProxy": {
        "address": "proxy.example.com:1080", "username": "u", "password": "hush",
        "tls": {"enabled": true, "serverName": "sn", "caCert": "PEM"},
    }});
    assert_eq!(refusal(proxy.clone()), "network.egressProxy.tls is not supported by sandboxvm; see docs/e2b.md");
    let proxy = egress(proxy);
    assert_eq!(
        serde_json::to_value(proxy.shown()).unwrap(),
        json!({"egressProxy": {"address": "proxy.example.com:1080", "username": "u", "tls": {"enabled": true, "serverName": "sn"}}})
    );
    let debug =
        format!("{proxy:?} {:?}", egress(json!({"rules": {"a.example": [{"transform": {"headers": {"A": "hush"}}}]}})));
    assert!(!debug.contains("hush") && !debug.contains("PEM"), "{debug}");
}

#[test]
fn words_are_read_back_as_they_were_said() {
    for said in [
        json!({}),
        json!({"allowOut": [], "denyOut": ["8.8.8.8/24"], "dnsServers": ["1.1.1.1"]}),
        json!({"rules": {"a.example": [{"transform": {"headers": {"A": "b"}}}]}}),
    ] {
        assert_eq!(serde_json::to_value(egress(said.clone()).shown()).unwrap(), said);
    }
    assert_eq!(egress(json!({"allowOut": null, "egressProxy": null, "allowPublicTraffic": false})), Egress::default());
}
