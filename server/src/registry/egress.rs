//! What a sandbox may reach, in the words of its client (E2B's JSON), and what they mean as settings of a network.
//!
//! In these lists allow beats deny, no list at all is what the operator made the default, and a name can only be allowed where
//! everything else is denied.

use crate::config::network::ServerNetwork;
use ipnet::IpNet;
use sandboxvm_manager::{
    HeaderRuleSpec, HeaderSpec, NetworkSpec, Precedence, ProxyError, ProxySpec, Reach, Rule, SecretText, Target,
    ValueSource,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

/// Maximum number of entries of `allowOut` and of `denyOut`.
const MAX_ENTRIES: usize = 1000;
/// Maximum length of an entry that an error repeats.
const MAX_ENTRY: usize = 320;
/// The maxima of E2B's API.
const MAX_DNS_SERVERS: usize = 10;
const MAX_RULE_DOMAINS: usize = 10;
const MAX_RULE_DOMAIN: usize = 128;
const MAX_TRANSFORMS: usize = 1;
const MAX_HEADERS: usize = 20;
const MAX_HEADER_NAME: usize = 64;
const MAX_HEADER_VALUE: usize = 2048;
const MAX_MARKERS: usize = 32;
/// What a marker of a secret begins with.
const MARKER: &str = "${e2b.";

/// What a client says of its sandbox's way out. Absent is not the same as empty where it is read back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Egress {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allow_out: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deny_out: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dns_servers: Option<Vec<String>>,
    /// Headers that are set in requests to hosts. They grant nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rules: Option<BTreeMap<String, Vec<HostRule>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress_proxy: Option<EgressProxy>,
}

/// What is done with requests to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transform: Option<Transform>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transform {
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// A proxy for the connections of a sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EgressProxy {
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<ProxyTls>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProxyTls {
    #[serde(default)]
    enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_cert: Option<String>,
}

/// Values may be secrets.
impl fmt::Debug for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transform").field("headers", &self.headers.keys()).finish()
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Why a client's words have no meaning here. The texts are E2B's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EgressError {
    #[error("invalid denied CIDR {0}")]
    Denied(String),
    #[error("invalid allow out entry: {entry}: {problem}")]
    Allowed { entry: String, problem: String },
    #[error(
        "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic."
    )]
    DomainsNeedDenial,
    #[error("invalid DNS server {0}: expected an IPv4 address")]
    DnsServer(String),
    #[error("too many {what}: {count}, and the maximum is {most}")]
    TooMany { what: &'static str, count: usize, most: usize },
    #[error("invalid network rule for {domain}: {problem}")]
    Rule { domain: String, problem: String },
    #[error(
        "network.rules for {domain} has a marker ${{e2b...}} in the header {header}: tokens and secrets that E2B keeps are not \
         supported by sandboxvm; give the value itself"
    )]
    Markers { domain: String, header: String },
    /// The address is not repeated: it may have a password by mistake.
    #[error("invalid egress proxy address: expected HOST:PORT")]
    ProxyAddress,
    #[error("invalid egress proxy: {0}")]
    Proxy(ProxyError),
    #[error("{0} is not supported by sandboxvm; see docs/e2b.md")]
    Unsupported(&'static str),
}

impl Egress {
    /// Returns the settings that these words mean, with what the client says of `internet` as a whole.
    ///
    /// # Errors
    /// Every [`EgressError`]. Whether the operator permits the settings is not checked here.
    pub(crate) fn spec(&self, internet: Option<bool>, operator: &ServerNetwork) -> Result<NetworkSpec, EgressError> {
        let (denied, own) = (self.denied()?, self.allowed()?);
        let denies_all = denied.iter().any(covers_all);
        if !denies_all && own.iter().any(|rule| matches!(rule.target(), Target::Domain(_))) {
            return Err(EgressError::DomainsNeedDenial);
        }
        let dns = self.dns()?;
        let header_rules = self.header_rules()?;
        let proxy = self.egress_proxy.as_ref().map(EgressProxy::spec).transpose()?;
        let denies_the_rest = denies_all || internet == Some(false);
        let usual = if denies_the_rest { Reach::Nothing } else { operator.reach };
        let reach = match usual {
            Reach::Nothing if !own.is_empty() => Reach::Listed,
            usual => usual,
        };
        let mut allow = own;
        let mut precedence = Precedence::Allow;
        if usual == Reach::Listed {
            // The rules are the operator's then, and what the client denies has to narrow them.
            precedence = if denied.is_empty() { Precedence::Allow } else { Precedence::Deny };
            allow.extend(operator.rules.iter().cloned());
        }
        Ok(NetworkSpec {
            reach,
            precedence,
            allow,
            deny: denied.into_iter().filter(|rule| !covers_all(rule)).collect(),
            // Where nothing is reached, no name is asked for either.
            dns: if reach == Reach::Nothing { Vec::new() } else { dns },
            header_rules: if reach == Reach::Nothing { Vec::new() } else { header_rules },
            proxy,
            limits: operator.permits.limits,
            ..NetworkSpec::default()
        })
    }

    /// Returns true if the client asks for a part of the network by itself.
    pub(crate) fn allows_something(&self) -> bool {
        self.allow_out.as_ref().is_some_and(|entries| !entries.is_empty())
    }

    /// Returns these words without the headers of rules and the login at the proxy, which a copy of the sandbox does not get:
    /// they are secrets of the original, as those that the guest has placeholders of.
    pub(crate) fn of_copy(&self) -> Self {
        let shown = self.shown();
        let egress_proxy = shown.egress_proxy.map(|proxy| EgressProxy { username: None, ..proxy });
        Self { rules: None, egress_proxy, ..shown }
    }

    /// Returns what a client reads back and what is recorded: all but the password and the certificate of a proxy. It has the
    /// values of headers, so it is for the key that owns the sandbox alone.
    pub(crate) fn shown(&self) -> Self {
        let shown = |proxy: &EgressProxy| EgressProxy {
            password: None,
            tls: proxy.tls.as_ref().map(|tls| ProxyTls { ca_cert: None, ..tls.clone() }),
            ..proxy.clone()
        };
        Self { egress_proxy: self.egress_proxy.as_ref().map(shown), ..self.clone() }
    }

    /// Returns true if these words have values of headers or the password of a proxy: a file with them is overwritten before
    /// it is gone.
    pub(crate) fn has_secrets(&self) -> bool {
        let of_proxy = self.egress_proxy.as_ref().is_some_and(|proxy| proxy.password.is_some());
        of_proxy || self.rules.iter().flat_map(BTreeMap::values).flatten().any(|rule| rule.headers().next().is_some())
    }

    fn denied(&self) -> Result<Vec<Rule>, EgressError> {
        let texts = bounded("entries of denyOut", self.deny_out.as_deref().unwrap_or_default(), MAX_ENTRIES)?;
        let parse = |text: &String| match entry(text) {
            Ok(rule) if matches!(rule.target(), Target::Net(_)) => Ok(rule),
            _ => Err(EgressError::Denied(cut(text))),
        };
        texts.iter().map(parse).collect()
    }

    fn allowed(&self) -> Result<Vec<Rule>, EgressError> {
        let texts = bounded("entries of allowOut", self.allow_out.as_deref().unwrap_or_default(), MAX_ENTRIES)?;
        let parse = |text: &String| entry(text).map_err(|problem| EgressError::Allowed { entry: cut(text), problem });
        texts.iter().map(parse).collect()
    }

    fn dns(&self) -> Result<Vec<IpAddr>, EgressError> {
        let texts = bounded("dnsServers", self.dns_servers.as_deref().unwrap_or_default(), MAX_DNS_SERVERS)?;
        let parse = |text: &String| match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(address.into()),
            Err(_) => Err(EgressError::DnsServer(cut(text))),
        };
        texts.iter().map(parse).collect()
    }

    /// Returns the headers that rules set, within the limits of E2B's API.
    fn header_rules(&self) -> Result<Vec<HeaderRuleSpec>, EgressError> {
        let Some(rules) = &self.rules else { return Ok(Vec::new()) };
        at_most("domains in network.rules", rules.len(), MAX_RULE_DOMAINS)?;
        let markers =
            rules.values().flatten().flat_map(HostRule::headers).map(|(_, value)| value.matches(MARKER).count());
        at_most("secrets in network.rules", markers.sum(), MAX_MARKERS)?;
        rules.iter().map(|(domain, transforms)| header_rule(domain, transforms)).collect()
    }
}

impl EgressProxy {
    fn spec(&self) -> Result<ProxySpec, EgressError> {
        let Self { address, username, password, tls } = self;
        if tls.as_ref().is_some_and(|tls| tls.enabled) {
            return Err(EgressError::Unsupported("network.egressProxy.tls"));
        }
        // E2B's proxies are SOCKS5. The address is not the place for a login.
        let is_address = !address.contains(['@', '/']);
        let parsed = Some(address).filter(|_| is_address).map(|address| format!("socks5://{address}").parse());
        let proxy: ProxySpec = match parsed {
            Some(Ok(proxy)) => proxy,
            Some(Err(ProxyError::Text)) | None => return Err(EgressError::ProxyAddress),
            Some(Err(error)) => return Err(EgressError::Proxy(error)),
        };
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let password = given(password).map(|password| ValueSource::Given(SecretText::new(password)));
        let proxy = ProxySpec { user: given(username), password, ..proxy };
        proxy.check().map_err(EgressError::Proxy)?;
        Ok(proxy)
    }
}

impl HostRule {
    fn headers(&self) -> impl Iterator<Item = (&String, &String)> {
        self.transform.iter().flat_map(|transform| &transform.headers)
    }
}

fn header_rule(domain: &str, transforms: &[HostRule]) -> Result<HeaderRuleSpec, EgressError> {
    let wrong = |problem: String| EgressError::Rule { domain: cut(domain), problem };
    let is_name = entry(domain).is_ok_and(|rule| matches!(rule.target(), Target::Domain(_)) && !rule.names_port());
    if domain.len() > MAX_RULE_DOMAIN || !is_name {
        return Err(wrong(format!("expected a domain or *.domain of at most {MAX_RULE_DOMAIN} bytes")));
    }
    at_most("transforms of a domain in network.rules", transforms.len(), MAX_TRANSFORMS)?;
    at_most(
        "headers of a domain in network.rules",
        transforms.iter().flat_map(HostRule::headers).count(),
        MAX_HEADERS,
    )?;
    let header = |(name, value): (&String, &String)| {
        if name.is_empty() || name.len() > MAX_HEADER_NAME || !name.bytes().all(is_token) {
            return Err(wrong(format!("expected names of headers with at most {MAX_HEADER_NAME} bytes")));
        }
        let is_control = |byte: u8| byte != b'\t' && byte.is_ascii_control();
        if value.is_empty() || value.len() > MAX_HEADER_VALUE || value.bytes().any(is_control) {
            return Err(wrong(format!("expected a value of {name} with 1 to {MAX_HEADER_VALUE} bytes")));
        }
        // Sent as it is, a marker would tell the server what the client meant to keep from it.
        if value.contains(MARKER) {
            return Err(EgressError::Markers { domain: cut(domain), header: name.clone() });
        }
        Ok(HeaderSpec { name: name.clone(), value: ValueSource::Given(SecretText::new(value.clone())) })
    };
    let headers = transforms.iter().flat_map(HostRule::headers).map(header).collect::<Result<_, _>>()?;
    Ok(HeaderRuleSpec { host: domain.to_owned(), headers })
}

fn at_most(what: &'static str, count: usize, most: usize) -> Result<(), EgressError> {
    if count > most { Err(EgressError::TooMany { what, count, most }) } else { Ok(()) }
}

/// True for a byte that the name of a header may have (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Parses an IP address, a network, a domain or `*.domain`, each optionally with a port. A network may have bits that its prefix
/// does not cover, as with E2B.
fn entry(text: &str) -> Result<Rule, String> {
    if let Ok(network) = text.parse::<IpNet>() {
        return Ok(Rule::all_of(network.trunc()));
    }
    let rule: Rule = text.parse().map_err(|error: sandboxvm_manager::RuleError| error.to_string())?;
    match rule.target() {
        // Services of the host are not part of E2B's language.
        Target::Host => Err("expected an IP address, a network or a domain".to_owned()),
        _ => Ok(rule),
    }
}

/// True for what clients call `ALL_TRAFFIC`.
fn covers_all(rule: &Rule) -> bool {
    let is_all = |net: &IpNet| net.prefix_len() == 0 && net.addr().is_ipv4();
    rule.is_unrestricted() && matches!(rule.target(), Target::Net(net) if is_all(net))
}

fn bounded<'t>(what: &'static str, texts: &'t [String], most: usize) -> Result<&'t [String], EgressError> {
    at_most(what, texts.len(), most).map(|()| texts)
}

/// A client's text for an error.
fn cut(text: &str) -> String {
    let mut text = text.to_owned();
    text.truncate(text.floor_char_boundary(MAX_ENTRY));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of the network, as clients name it.
    const ALL_TRAFFIC: &str = "0.0.0.0/0";

    use crate::config::network::tests::{network, public, rules};
    use serde_json::{Value, json};

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
        assert_eq!(
            texts(&listed.allow),
            ["api.example.com", "*.corp.example", "1.1.1.1", "8.8.8.0/24", "git.example:22"]
        );
        assert_eq!((texts(&listed.deny), listed.dns), (vec!["8.8.8.8".to_owned()], vec![IpAddr::from([1, 1, 1, 1])]));
        // Allowing addresses takes nothing away, and what is allowed stays so without the internet.
        assert_eq!(public_spec(None, json!({"allowOut": ["1.1.1.1"]})).reach, Reach::Public);
        let without = public_spec(Some(false), json!({"allowOut": ["1.1.1.1"]}));
        assert_eq!((without.reach, texts(&without.allow)), (Reach::Listed, vec!["1.1.1.1".to_owned()]));
    }

    #[test]
    fn internet_is_what_the_operator_made_the_default() {
        let of =
            |json: Value, internet, default, permits| egress(json).spec(internet, &network(default, permits)).unwrap();
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
        assert_eq!(
            refusal(json!({"dnsServers": vec!["1.1.1.1"; 11]})),
            "too many dnsServers: 11, and the maximum is 10"
        );
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
            (
                json!({"a.example": [{}, {}]}),
                "too many transforms of a domain in network.rules: 2, and the maximum is 1",
            ),
            (
                json!({"a.example": rule(many(21, json!("x")))}),
                "too many headers of a domain in network.rules: 21, and the maximum is 20",
            ),
            (
                many(
                    10,
                    rule(json!({"A": "${e2b.secrets.A}${e2b.secrets.B}", "B": "${e2b.secrets.C}${e2b.secrets.D}"})),
                ),
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
        assert_eq!(
            (wanted.to_string().as_str(), wanted.user.as_deref()),
            ("socks5://proxy.example.com:1080", Some("u"))
        );
        assert_eq!(wanted.password, Some(ValueSource::Given(SecretText::new("hush".into()))));
        assert!(egress(proxy.clone()).has_secrets() && !egress(proxy.clone()).shown().has_secrets());
        assert_eq!(egress(proxy).of_copy(), egress(with(json!({"address": "proxy.example.com:1080"}))));
        let plain =
            with(json!({"address": "[2001:db8::1]:1080", "username": "", "password": "", "tls": {"enabled": false}}));
        let plain = public_spec(None, plain).proxy.unwrap();
        assert_eq!(
            (plain.to_string().as_str(), plain.user, plain.password),
            ("socks5://[2001:db8::1]:1080", None, None)
        );
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
        let debug = format!(
            "{proxy:?} {:?}",
            egress(json!({"rules": {"a.example": [{"transform": {"headers": {"A": "hush"}}}]}}))
        );
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
        assert_eq!(
            egress(json!({"allowOut": null, "egressProxy": null, "allowPublicTraffic": false})),
            Egress::default()
        );
    }
}
