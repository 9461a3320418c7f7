//! `[network]` of the configuration: what sandboxes reach unless their clients ask for something, and the most that clients may
//! ask for. Without the section sandboxes have no network, as before servers knew one.

use sandboxvm_manager::{
    EgressLimits, NetworkOperator, NetworkSpec, NetworkSpecError, Permitted, Provided, ProxyError, ProxySpec, Reach,
    Rule,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

const DNS_PORT: u16 = 53;

/// What sandboxes may reach on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// What a sandbox reaches whose client asks for nothing. Nothing unless given.
    pub default: Option<Reachable>,
    /// The most that a client may ask for; the default above unless given.
    pub permits: Option<Reachable>,
    /// Networks below the floor that rules may open, each as `address/length`.
    pub open: Vec<String>,
    /// Resolvers, each as `address` or `address:port`; those of the host unless given.
    pub resolvers: Vec<String>,
    /// A file with certificates of authorities (PEM) that are accepted, in addition to those of the host, of servers whose TLS
    /// is ended to set headers.
    pub trust: Option<PathBuf>,
    /// The proxy that carries the connections of every sandbox, as `socks5://[USER@]HOST:PORT` or with `http://`. It may have
    /// a private address. Clients cannot name another one then.
    pub proxy: Option<String>,
    /// A file with its password, as an absolute path. It is read each time that the network of a sandbox starts.
    pub proxy_password_file: Option<PathBuf>,
    /// Whether clients may name other resolvers (`dnsServers`).
    pub dns_servers: bool,
    /// Whether clients may name a proxy (`egressProxy`), which has to have a public address.
    pub egress_proxy: bool,
    /// Limits of each sandbox.
    pub per_sandbox: NetworkLimits,
    /// Limits of all sandboxes of one key together; 0: no limit. Each sandbox gets the same share, as if the key had as many as
    /// it may have: so the sum holds without one sandbox knowing of the others.
    pub per_key: NetworkLimits,
}

/// Limits on the use of the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkLimits {
    /// Connections at a time.
    pub connections: u32,
    /// New connections in a second.
    pub connections_per_second: u32,
    /// DNS queries in a second.
    pub queries_per_second: u32,
    /// Bytes that are sent in a second; 0: no limit.
    pub sent_rate: u64,
    /// Bytes that are received in a second; 0: no limit.
    pub received_rate: u64,
}

/// A part of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"none\", \"public\" or a list of rules")]
pub enum Reachable {
    /// One with a name.
    Named(NamedPart),
    /// What these rules allow.
    Rules(Vec<String>),
}

/// A part of the network that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedPart {
    /// Nothing.
    None,
    /// Everything above the floor.
    Public,
}

/// A `[network]` that has no meaning.
#[derive(Debug, thiserror::Error)]
pub enum NetworkConfigError {
    /// A text is not a value of its setting.
    #[error("invalid network.{setting} {text:?}: {problem}")]
    Invalid {
        /// Name of the setting.
        setting: &'static str,
        /// The text.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// The proxy cannot be used. Its text is not repeated: it may have a password by mistake.
    #[error("invalid network.proxy: {0}")]
    Proxy(#[from] ProxyError),
    /// Clients that ask for nothing would get more than others may ask for.
    #[error("invalid network.default: network.permits does not cover it: {0}")]
    Default(NetworkSpecError),
    /// Builds would get more than clients may ask for.
    #[error("invalid images.network: network.permits does not cover it: {0}")]
    Builds(NetworkSpecError),
}

impl Default for NetworkConfig {
    fn default() -> Self {
        let EgressLimits { flows, flows_per_second, queries_per_second, bytes_out_per_second, bytes_in_per_second } =
            EgressLimits::default();
        let per_sandbox = NetworkLimits {
            connections: flows,
            connections_per_second: flows_per_second,
            queries_per_second,
            sent_rate: bytes_out_per_second,
            received_rate: bytes_in_per_second,
        };
        Self {
            default: None,
            permits: None,
            open: Vec::new(),
            resolvers: Vec::new(),
            trust: None,
            proxy: None,
            proxy_password_file: None,
            dns_servers: true,
            egress_proxy: true,
            per_sandbox,
            per_key: NetworkLimits::default(),
        }
    }
}

/// The network of a server's sandboxes, as its operator decided.
#[derive(Debug, Clone)]
pub(crate) struct ServerNetwork {
    /// What a sandbox reaches whose client asks for nothing.
    pub(crate) reach: Reach,
    /// What it is allowed then, for [`Reach::Listed`].
    pub(crate) rules: Vec<Rule>,
    pub(crate) permits: Permitted,
    per_key: NetworkLimits,
    provides: Provided,
    is_stated: bool,
}

impl NetworkConfig {
    /// Returns what the section means.
    ///
    /// # Errors
    /// Every [`NetworkConfigError`].
    pub(crate) fn network(&self) -> Result<ServerNetwork, NetworkConfigError> {
        let none = Reachable::Named(NamedPart::None);
        let default = self.default.as_ref().unwrap_or(&none);
        let (reach, rules) = default.parse("default")?;
        let (most, allow) = self.permits.as_ref().unwrap_or(default).parse("permits")?;
        let permits = Permitted {
            reach: most,
            allow,
            resolvers: self.dns_servers,
            proxies: self.egress_proxy && self.proxy.is_none(),
            limits: self.per_sandbox.limits(),
        };
        let opened = self.open.iter().map(|text| parsed("open", text));
        let resolvers = self.resolvers.iter().map(|text| match text.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::from((address, DNS_PORT))),
            Err(_) => parsed("resolvers", text),
        });
        let provides = Provided {
            opened: opened.collect::<Result<_, _>>()?,
            resolvers: resolvers.collect::<Result<_, _>>()?,
            trust: self.trust.clone(),
            proxy: self.proxy()?,
        };
        let (per_key, is_stated) = (self.per_key, self.default.is_some());
        let network = ServerNetwork { reach, rules, permits, per_key, provides, is_stated };
        let usual = NetworkSpec { reach, allow: network.rules.clone(), ..NetworkSpec::default() };
        network.permits.check(&usual).map_err(NetworkConfigError::Default)?;
        Ok(network)
    }

    fn proxy(&self) -> Result<Option<ProxySpec>, ProxyError> {
        let parse = |text: &String| text.parse::<ProxySpec>()?.of_operator(self.proxy_password_file.clone());
        self.proxy.as_ref().map(parse).transpose()
    }
}

impl NetworkLimits {
    fn limits(&self) -> EgressLimits {
        EgressLimits {
            flows: self.connections,
            flows_per_second: self.connections_per_second,
            queries_per_second: self.queries_per_second,
            bytes_out_per_second: self.sent_rate,
            bytes_in_per_second: self.received_rate,
        }
    }
}

impl Reachable {
    pub(super) fn parse(&self, setting: &'static str) -> Result<(Reach, Vec<Rule>), NetworkConfigError> {
        match self {
            Self::Named(NamedPart::None) => Ok((Reach::Nothing, Vec::new())),
            Self::Named(NamedPart::Public) => Ok((Reach::Public, Vec::new())),
            Self::Rules(texts) => {
                let rules = texts.iter().map(|text| parsed(setting, text)).collect::<Result<_, _>>()?;
                Ok((Reach::Listed, rules))
            }
        }
    }
}

fn parsed<T: std::str::FromStr<Err: fmt::Display>>(setting: &'static str, text: &str) -> Result<T, NetworkConfigError> {
    text.parse().map_err(|error: T::Err| NetworkConfigError::Invalid {
        setting,
        text: text.to_owned(),
        problem: error.to_string(),
    })
}

impl ServerNetwork {
    /// Returns true if machines have a network card. Without one, nothing can be allowed later.
    pub(crate) fn has_cards(&self) -> bool {
        self.permits.reach != Reach::Nothing
    }

    /// Returns the limits of a sandbox of a key that may have so many.
    pub(crate) fn limits(&self, sandboxes: u32) -> EgressLimits {
        // 0 would be without a limit, so a small share is at least 1.
        let count = |own: u32, of_key: u32| if of_key == 0 { own } else { own.min((of_key / sandboxes.max(1)).max(1)) };
        let rate = |of_key: u64| if of_key == 0 { 0 } else { (of_key / u64::from(sandboxes.max(1))).max(1) };
        let (own, key) = (self.permits.limits, self.per_key);
        let share = EgressLimits {
            flows: count(own.flows, key.connections),
            flows_per_second: count(own.flows_per_second, key.connections_per_second),
            queries_per_second: count(own.queries_per_second, key.queries_per_second),
            bytes_out_per_second: rate(key.sent_rate),
            bytes_in_per_second: rate(key.received_rate),
        };
        self.permits.limited(share)
    }

    /// Returns what the manager enforces.
    pub(crate) fn operator(&self) -> NetworkOperator {
        NetworkOperator { provides: self.provides.clone(), permits: Some(self.permits.clone()), program: None }
    }
}

impl fmt::Display for ServerNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |reach, rules: &[Rule]| match reach {
            Reach::Nothing => "nothing".to_owned(),
            Reach::Public => "the public internet".to_owned(),
            Reach::Listed => match rules.len() {
                1 => "what 1 rule allows".to_owned(),
                count => format!("what {count} rules allow"),
            },
        };
        if !self.is_stated {
            f.write_str("network.default is not set: ")?;
        }
        let usual = part(self.reach, &self.rules);
        write!(f, "by default sandboxes reach {usual} on the network")?;
        let most = part(self.permits.reach, &self.permits.allow);
        if most != usual {
            write!(f, ", and clients may ask for {most}")?;
        }
        match &self.provides.proxy {
            Some(proxy) => write!(f, ", through the proxy {proxy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Rules are texts of the configuration; `[]` is none.
    pub(crate) fn network(default: Option<Reachable>, permits: Option<Reachable>) -> ServerNetwork {
        NetworkConfig { default, permits, ..NetworkConfig::default() }.network().unwrap()
    }

    pub(crate) fn public() -> Option<Reachable> {
        Some(Reachable::Named(NamedPart::Public))
    }

    pub(crate) fn rules(texts: &[&str]) -> Option<Reachable> {
        Some(Reachable::Rules(texts.iter().map(|text| (*text).to_owned()).collect()))
    }

    #[test]
    fn configuration_without_the_section_has_no_network() {
        let network = network(None, None);
        assert!(!network.has_cards() && network.reach == Reach::Nothing);
        assert_eq!(
            network.to_string(),
            "network.default is not set: by default sandboxes reach nothing on the network"
        );
        let operator = network.operator();
        let spec = NetworkSpec { reach: Reach::Listed, ..NetworkSpec::default() };
        assert!(operator.permits.unwrap().check(&spec).is_err());
    }

    #[test]
    fn section_says_what_is_usual_and_what_is_permitted() {
        let read = |text: &str| toml::from_str::<NetworkConfig>(text).map_err(|error| error.to_string());
        let said = |text: &str| read(text).unwrap().network().unwrap().to_string();
        assert_eq!(said("default = \"public\""), "by default sandboxes reach the public internet on the network");
        assert_eq!(
            said("default = \"none\"\npermits = [\"*.example\", \"192.0.2.0/24:443\"]"),
            "by default sandboxes reach nothing on the network, and clients may ask for what 2 rules allow"
        );
        let listed = read("default = [\"index.example\"]\npermits = \"public\"").unwrap().network().unwrap();
        assert_eq!((listed.reach, listed.permits.reach, listed.rules.len()), (Reach::Listed, Reach::Public, 1));
        let wrong = read("default = \"all\"").unwrap_err();
        assert!(wrong.contains("expected \"none\", \"public\" or a list of rules"), "{wrong}");
        let provides =
            "open = [\"10.0.0.0/8\"]\nresolvers = [\"127.0.0.1\", \"[2001:db8::1]:5353\"]\nper_sandbox.sent_rate = 5";
        let operator = read(provides).unwrap().network().unwrap().operator();
        assert_eq!(operator.provides.opened.len(), 1);
        let resolvers: Vec<String> = operator.provides.resolvers.iter().map(ToString::to_string).collect();
        assert_eq!(resolvers, ["127.0.0.1:53", "[2001:db8::1]:5353"]);
        assert_eq!(operator.permits.unwrap().limits.bytes_out_per_second, 5);
    }

    #[test]
    fn proxy_of_the_operator_excludes_those_of_clients() {
        let read = |text: &str| toml::from_str::<NetworkConfig>(text).unwrap().network();
        let with = |text: &str| read(&format!("default = \"public\"\n{text}")).unwrap();
        let permits = |text: &str| with(text).operator().permits.unwrap().proxies;
        assert!(permits("") && !permits("egress_proxy = false") && !permits("proxy = \"http://10.0.0.1:3128\""));
        let network = with("proxy = \"socks5://me@proxy.example:1080\"\nproxy_password_file = \"/etc/proxy-password\"");
        assert!(network.to_string().ends_with(", through the proxy socks5://proxy.example:1080"), "{network}");
        let proxy = network.operator().provides.proxy.unwrap();
        assert_eq!(proxy.password, Some(sandboxvm_manager::ValueSource::File("/etc/proxy-password".into())));
        let refusal = |text: &str| read(text).unwrap_err().to_string();
        let inline = refusal("proxy = \"socks5://me:hush@proxy.example:1080\"");
        assert_eq!(
            inline,
            "invalid network.proxy: the password of the operator's proxy has to be in a file (proxy_password_file)"
        );
        assert!(!refusal("proxy = \"me:hush@proxy.example\"").contains("hush"));
    }

    #[test]
    fn sandboxes_share_the_limits_of_their_key() {
        let limits = |per_key: NetworkLimits, sandboxes| {
            NetworkConfig { default: public(), per_key, ..NetworkConfig::default() }
                .network()
                .unwrap()
                .limits(sandboxes)
        };
        let usual = EgressLimits::default();
        assert_eq!(limits(NetworkLimits::default(), 100), usual);
        let key =
            NetworkLimits { connections: 1000, sent_rate: 1 << 20, queries_per_second: 10, ..NetworkLimits::default() };
        let share = limits(key, 100);
        assert_eq!((share.flows, share.bytes_out_per_second, share.queries_per_second), (10, (1 << 20) / 100, 1));
        assert_eq!((share.flows_per_second, share.bytes_in_per_second), (usual.flows_per_second, 0));
        assert_eq!(
            limits(NetworkLimits { connections: 1 << 20, ..key }, 1).flows,
            usual.flows,
            "its own limit holds too"
        );
        assert_eq!(limits(key, 0).flows, 1000);
    }

    #[test]
    fn settings_without_a_meaning_are_named() {
        let refusal = |config: NetworkConfig| config.network().unwrap_err().to_string();
        let some = NetworkConfig::default;
        assert_eq!(
            refusal(NetworkConfig { default: rules(&["a b"]), ..some() }),
            "invalid network.default \"a b\": invalid target \"a b\": it contains a character other than letters, digits, \
             hyphens and underscores"
        );
        let opened = refusal(NetworkConfig { open: vec!["10.0.0.0".into()], ..some() });
        assert!(opened.starts_with("invalid network.open \"10.0.0.0\": "), "{opened}");
        let resolvers = refusal(NetworkConfig { resolvers: vec!["dns.example".into()], ..some() });
        assert!(resolvers.starts_with("invalid network.resolvers \"dns.example\": "), "{resolvers}");
        assert_eq!(
            refusal(NetworkConfig { default: public(), permits: rules(&["a.example"]), ..some() }),
            "invalid network.default: network.permits does not cover it: the operator does not permit the public internet"
        );
    }
}
