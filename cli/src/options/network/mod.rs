//! Options for what a sandbox reaches on the network. The manager decides what the options mean for a sandbox; this module
//! decides how they combine.

pub(super) mod policy_file;
pub(crate) mod secret_values;

use crate::failure::Failure;
use clap::{Args, ValueEnum};
use policy_file::{Files, refused};
use sandboxvm_manager::{HostName, NetworkOperator, NetworkSpec, Reach, Rule, Sandbox};
use secret_values::{proxy, secret};
use std::{env, net::IpAddr, path::PathBuf};

/// What is reached on the network.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct Targets {
    /// What is reached: none, what --allow lists, or the public internet. Addresses of the host, its networks, private ranges
    /// and metadata services are never public [default: allow with --allow, else none]
    #[arg(long, value_enum, value_name = "REACH")]
    net: Option<Net>,
    /// Allow a target: a name, *.NAME, an address, a network, or host:PORT for a service of this host, each except the last
    /// with an optional :PORT[-PORT] and /tcp, /udp or /icmp; or @SET of the policy file. Can be repeated, or a list with
    /// commas
    #[arg(long, value_name = "RULE", allow_hyphen_values = true)]
    allow: Vec<String>,
    /// Deny a target; takes precedence over --allow
    #[arg(long, value_name = "RULE", allow_hyphen_values = true)]
    deny: Vec<String>,
    /// Apply a policy file, with its sets [default: only the sets of ~/.config/sandboxvm/network.toml]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// What a sandbox reaches on the network, and how.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkOptions {
    #[command(flatten)]
    targets: Targets,
    /// Resolve names with this resolver instead of the host's; can be repeated (at most 10)
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dns: Vec<IpAddr>,
    /// Give a name a fixed address, which a rule has to allow; can be repeated
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    add_host: Vec<HostName>,
    /// Let requests to these hosts carry a secret that the guest never sees: the guest's variable NAME has a placeholder,
    /// which becomes the secret in headers of requests over TLS. Its value is that of the variable NAME here, or the content
    /// of FILE. It allows no host. aws:env@HOST and aws:PROFILE=FILE@HOST take an access key of AWS from the variables
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN here, or from the credentials file FILE: requests
    /// that the guest signed with placeholders are signed again with the key. Can be repeated
    #[arg(long, value_name = "NAME[=FILE]@HOST[,HOST]")]
    secret: Vec<String>,
    /// Send every TCP connection of the sandbox through the proxy socks5://[USER[:PASSWORD]@]HOST:PORT, or the same with
    /// http:// for HTTP CONNECT; UDP is refused then. The proxy is asked for addresses, and names are resolved as without it
    /// [default: that of [operator] in ~/.config/sandboxvm/network.toml, else none]
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// Read the password of --proxy from this environment variable of the command. A password in --proxy itself can be read
    /// by other users of this host
    #[arg(long, value_name = "NAME", requires = "proxy", conflicts_with = "proxy_password_file")]
    proxy_password: Option<String>,
    /// Read the password of --proxy from this file, each time that the network of the sandbox starts
    #[arg(long, value_name = "FILE", requires = "proxy")]
    proxy_password_file: Option<PathBuf>,
}

impl Targets {
    /// Returns the network of each machine of a build, or `None` for machines without a card. Secrets of a build are something
    /// else than those of a network, so it has no other options.
    pub(crate) fn network(&self) -> Result<Option<Network>, Failure> {
        NetworkOptions { targets: self.clone(), ..NetworkOptions::default() }.network()
    }
}

/// Values of `--net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Net {
    /// Nothing
    None,
    /// What --allow lists
    Allow,
    /// The public internet
    Public,
}

/// A network, and what the user provides as the operator of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) spec: NetworkSpec,
    pub(crate) operator: NetworkOperator,
}

impl NetworkOptions {
    /// Returns true if no option is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.targets.net.is_none() && self.targets.policy.is_none() && !self.extend()
    }

    /// Returns true if an option is given that extends a network.
    fn extend(&self) -> bool {
        !(self.targets.allow.is_empty()
            && self.targets.deny.is_empty()
            && self.dns.is_empty()
            && self.add_host.is_empty()
            && self.secret.is_empty()
            && self.proxy.is_none())
    }

    /// Returns the network of a new sandbox, or `None` for a machine without a card.
    pub(crate) fn network(&self) -> Result<Option<Network>, Failure> {
        if self.is_empty() {
            return Ok(None);
        }
        let files = Files::read(self.targets.policy.as_deref())?;
        let Some(spec) = self.combined(&files)? else { return Ok(None) };
        Ok(Some(Network { spec, operator: files.operator }))
    }

    /// Returns the network of a sandbox that has a card: `before`, if it is given, with these options added.
    pub(crate) fn changed(&self, before: Option<NetworkSpec>) -> Result<Network, Failure> {
        let files = Files::read(self.targets.policy.as_deref())?;
        let spec = match before {
            Some(before) => self.added_to(before, &files)?,
            None => self.combined(&files)?.unwrap_or_default(),
        };
        Ok(Network { spec, operator: files.operator })
    }

    fn combined(&self, files: &Files) -> Result<Option<NetworkSpec>, Failure> {
        let base = if self.targets.policy.is_some() { files.policy.network().map_err(refused)? } else { None };
        let reach = match (self.targets.net, &base) {
            (Some(Net::None), _) if self.extend() => {
                return Err(Failure::new(
                    "cannot combine --net none with --allow, --deny, --dns, --add-host, --secret or --proxy",
                ));
            }
            (Some(Net::None), _) => return Ok(None),
            (Some(Net::Allow), _) => Reach::Listed,
            (Some(Net::Public), _) => Reach::Public,
            (None, Some(base)) => base.reach,
            (None, None) if !self.targets.allow.is_empty() => Reach::Listed,
            (None, None) if self.extend() => {
                return Err(Failure::new(
                    "cannot use --deny, --dns, --add-host, --secret and --proxy without a network",
                )
                .hinted("add --net public or --allow RULE".to_owned()));
            }
            // A policy without rules.
            (None, None) => return Ok(None),
        };
        let spec = NetworkSpec { reach, ..base.unwrap_or_default() };
        self.added_to(spec, files).map(Some)
    }

    fn added_to(&self, mut spec: NetworkSpec, files: &Files) -> Result<NetworkSpec, Failure> {
        add(&mut spec.allow, files.rules(&self.targets.allow)?);
        add(&mut spec.deny, files.rules(&self.targets.deny)?);
        match self.targets.net {
            Some(Net::None) => spec.reach = Reach::Nothing,
            Some(Net::Allow) => spec.reach = Reach::Listed,
            Some(Net::Public) => spec.reach = Reach::Public,
            None if spec.reach == Reach::Nothing && !self.targets.allow.is_empty() => spec.reach = Reach::Listed,
            None => {}
        }
        if !self.dns.is_empty() {
            spec.dns.clone_from(&self.dns);
        }
        for host in &self.add_host {
            spec.hosts.retain(|other| other.name != host.name);
            spec.hosts.push(host.clone());
        }
        for text in &self.secret {
            let secret = secret(text, |name| env::var(name))?;
            spec.secrets.retain(|other| other.name != secret.name);
            spec.secrets.push(secret);
        }
        if let Some(text) = &self.proxy {
            let (name, file) = (self.proxy_password.as_deref(), self.proxy_password_file.as_deref());
            spec.proxy = Some(proxy(text, name, file, |name| env::var(name))?);
        }
        spec.check()?;
        Ok(spec)
    }
}

fn add(rules: &mut Vec<Rule>, more: Vec<Rule>) {
    for rule in more {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
}

/// Warns if the machine has a network card and the sandbox no network: it was restored from the snapshot of a machine with
/// one.
pub(crate) fn warn_of_no_link(sandbox: &Sandbox) {
    if sandbox.has_network_card() && matches!(sandbox.network(), Ok(None)) {
        let message =
            "warning: the snapshot is of a machine with a network card, and the card has no link: nothing was allowed";
        Failure::new(message).hinted("--net or --allow gives the sandbox a network".to_owned()).report();
    }
}

fn host(text: &str) -> Result<HostName, String> {
    let (name, address) = text.split_once(':').ok_or("expected NAME:ADDRESS")?;
    let address = address.trim_matches(['[', ']']).parse().map_err(|_| "expected NAME:ADDRESS")?;
    let host = HostName { name: name.to_owned(), address };
    let spec = NetworkSpec { hosts: vec![host.clone()], ..NetworkSpec::default() };
    spec.check().map_err(|error| error.to_string())?;
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::{policy_file::parse, *};

    const FILE: &str = r#"
        allow = ["@python", "192.0.2.0/24"]
        deny = ["ads.example"]
        dns = ["192.0.2.53"]
        [hosts]
        "db.example" = "192.0.2.7"
        [sets]
        python = ["index.example", "files.example:443"]
    "#;

    fn files() -> Files {
        Files { policy: parse(FILE).unwrap(), operator: NetworkOperator::default() }
    }

    fn texts(rules: &[Rule]) -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    }

    fn targets(allow: &[&str]) -> Targets {
        Targets { allow: allow.iter().map(|text| (*text).to_owned()).collect(), ..Targets::default() }
    }

    fn with(targets: Targets) -> NetworkOptions {
        NetworkOptions { targets, ..NetworkOptions::default() }
    }

    fn options(allow: &[&str]) -> NetworkOptions {
        with(targets(allow))
    }

    #[test]
    fn allow_rules_imply_a_network_and_sets_are_expanded() {
        let spec = options(&["@python,host:5432"]).combined(&files()).unwrap().unwrap();
        assert_eq!(spec.reach, Reach::Listed);
        assert_eq!(texts(&spec.allow), ["index.example", "files.example:443", "host:5432"]);
        assert!(spec.deny.is_empty() && spec.dns.is_empty(), "a file that is not named is not applied");
        let public = with(Targets { net: Some(Net::Public), ..targets(&[]) });
        assert_eq!(public.combined(&files()).unwrap().unwrap().reach, Reach::Public);
        assert_eq!(options(&[]).combined(&files()).unwrap(), None);
    }

    #[test]
    fn named_policy_file_is_applied_and_options_add_to_it() {
        let named = with(Targets { policy: Some("x".into()), ..targets(&["git.example:22"]) });
        let spec = named.combined(&files()).unwrap().unwrap();
        let allowed = ["index.example", "files.example:443", "192.0.2.0/24", "git.example:22"];
        assert_eq!((spec.reach, texts(&spec.allow)), (Reach::Listed, allowed.map(str::to_owned).to_vec()));
        assert_eq!((texts(&spec.deny), spec.dns.len(), spec.hosts.len()), (vec!["ads.example".to_owned()], 1, 1));
        let none = with(Targets { net: Some(Net::None), policy: Some("x".into()), ..targets(&[]) });
        assert_eq!(none.combined(&files()).unwrap(), None);
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let refusal = |options: &NetworkOptions| options.combined(&files()).unwrap_err().text().to_owned();
        let none = with(Targets { net: Some(Net::None), ..targets(&["a.example"]) });
        assert!(refusal(&none).starts_with("cannot combine --net none"));
        let deny = with(Targets { deny: vec!["a.example".into()], ..targets(&[]) });
        assert!(refusal(&deny).contains("without a network"));
        let secret = NetworkOptions { secret: vec!["API_TOKEN@api.example".into()], ..options(&[]) };
        assert!(refusal(&secret).contains("without a network"));
        assert!(refusal(&options(&["@none"])).contains("no set has this name; there are @python"));
        assert!(refusal(&options(&["a b"])).starts_with("invalid rule \"a b\""));
    }

    #[test]
    fn changes_add_to_what_there_is() {
        let before = options(&["a.example"]).combined(&files()).unwrap().unwrap();
        let host = host("db.example:192.0.2.9").unwrap();
        let more = NetworkOptions { add_host: vec![host], ..options(&["a.example,b.example"]) };
        let spec = more.added_to(before, &files()).unwrap();
        assert_eq!(texts(&spec.allow), ["a.example", "b.example"]);
        assert_eq!(spec.hosts[0].address, IpAddr::from([192, 0, 2, 9]));
        let cut = with(Targets { net: Some(Net::None), ..targets(&[]) }).added_to(spec, &files()).unwrap();
        assert_eq!(cut.reach, Reach::Nothing);
    }

    #[test]
    fn host_names_and_policy_files_are_checked() {
        assert_eq!(host("db.example:2001:db8::1").unwrap().address, "2001:db8::1".parse::<IpAddr>().unwrap());
        assert!(host("db.example").is_err() && host("a b:192.0.2.1").is_err() && host("x:y").is_err());
        assert!(parse("allows = []").unwrap_err().contains("allows"), "an unknown setting is refused");
        let own = parse("[operator]\nopen = [\"10.0.0.0/8\"]\nresolvers = [\"127.0.0.1:53\"]").unwrap();
        assert_eq!(own.operator.unwrap().provided().unwrap().opened.len(), 1);
    }

    #[test]
    fn proxy_is_added_to_what_there_is_and_stays() {
        let proxied = NetworkOptions { proxy: Some("socks5://proxy.example:1080".into()), ..options(&["a.example"]) };
        let spec = proxied.combined(&files()).unwrap().unwrap();
        assert_eq!(spec.proxy.as_ref().unwrap().to_string(), "socks5://proxy.example:1080");
        let more = options(&["b.example"]).added_to(spec.clone(), &files()).unwrap();
        assert_eq!(more.proxy, spec.proxy);
        let alone = NetworkOptions { proxy: Some("socks5://proxy.example:1080".into()), ..options(&[]) };
        assert!(alone.combined(&files()).unwrap_err().text().contains("without a network"));
        let inline = parse("[operator]\nproxy = \"socks5://me:hush@proxy.example:1080\"").unwrap_err();
        assert!(inline.contains("has to be in a file (proxy_password_file)"), "{inline}");
    }
}
