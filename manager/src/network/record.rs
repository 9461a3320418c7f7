//! `network.json`: what a sandbox may reach. Written before others can see the sandbox, and replaced
//! as a whole. A record that this build does not understand lets nothing pass, because no egress
//! process starts with it.

use super::{
    operator::{NetworkOperator, Provided},
    proxy::{ProxyError, ProxySpec, Upstream},
    secrets::{Kept, Parts, SecretsError},
    spec::{NetworkSpec, NetworkSpecError},
};
use crate::{
    home::directory::{DirectoryError, NETWORK as FILE, SandboxDirectory},
    record::RecordError,
};
use ipnet::IpNet;
use sandboxvm_protocol::egress::{NetworkSettings, Reach};
use serde::{Deserialize, Serialize};

/// The format that this build reads and writes.
const FORMAT: u32 = 1;
/// Maximum size in bytes: the settings, which fit a message of half a maximum, as indented JSON.
const MAX_FILE: u64 = 1 << 20;

/// What a sandbox may reach, with what the operator provides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkRecord {
    format: u32,
    pub(crate) settings: NetworkSpec,
    #[serde(default)]
    pub(crate) operator: Provided,
    /// True if the sandbox is a tenant's: the operator permits it less than everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_tenants: bool,
}

impl NetworkRecord {
    /// Returns the record of a sandbox that gets what `spec` asks for.
    ///
    /// # Errors
    /// When the operator does not permit it.
    pub(crate) fn of(operator: &NetworkOperator, spec: &NetworkSpec) -> Result<Self, NetworkSpecError> {
        Ok(Self {
            format: FORMAT,
            settings: operator.admit(spec)?,
            operator: operator.provides.clone(),
            is_tenants: operator.permits.is_some(),
        })
    }

    /// Reads the record. Returns `None` for a sandbox without one.
    pub(crate) fn read(directory: &SandboxDirectory) -> Result<Option<Self>, RecordError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let json = match directory.read(FILE, MAX_FILE) {
            Ok(json) => json,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let path = || directory.path().join(FILE);
        let damaged = |source| RecordError::Damaged { path: path(), source };
        let Format { format } = serde_json::from_slice(&json).map_err(damaged)?;
        if format != FORMAT {
            return Err(RecordError::Format { path: path(), found: format, reads: FORMAT });
        }
        serde_json::from_slice(&json).map(Some).map_err(damaged)
    }

    /// Returns true if nothing is allowed by this record that the one in `directory` does not allow.
    pub(crate) fn only_narrows(&self, directory: &SandboxDirectory) -> bool {
        let before = Self::read(directory).ok().flatten();
        let is_within = |before: &Self| {
            let opened = |net: &IpNet| before.operator.opened.iter().any(|other| other.contains(net));
            self.operator.opened.iter().all(opened)
                && self.operator.proxy == before.operator.proxy
                && self.settings.only_narrows(&before.settings, !self.operator.opened.is_empty())
        };
        self.settings.reach == Reach::Nothing || before.as_ref().is_some_and(is_within)
    }

    /// Returns true if the sandbox in `directory` has a record.
    pub(crate) fn exists(directory: &SandboxDirectory) -> bool {
        directory.has(FILE)
    }

    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| directory.error("write", FILE, error))?;
        json.push(b'\n');
        directory.replace(FILE, &json)
    }

    /// Keeps the values that the settings give, which the record then only refers to. Values that the
    /// settings do not refer to stay until [`Self::drop_values`], so that the record before this one
    /// remains valid.
    pub(crate) fn keep_values(&mut self, directory: &SandboxDirectory) -> Result<(), SecretsError> {
        let NetworkSpec { secrets, header_rules, proxy, .. } = &mut self.settings;
        let proxy_password = proxy.as_mut().and_then(|proxy| proxy.password.as_mut());
        if secrets.is_empty() && header_rules.is_empty() && proxy_password.is_none() {
            // Kept values that cannot be read do not stop a change that needs none of them.
            return Ok(());
        }
        let mut kept = Kept::read(directory)?;
        let before = Self::read(directory)?;
        if let Some(before) = &before {
            // Values of changes that were refused.
            before.drop_others(&mut kept);
        }
        let before = before.map(|record| record.settings.secrets).unwrap_or_default();
        for secret in secrets.iter_mut().filter(|secret| secret.placeholder.is_empty()) {
            // Processes that run have the placeholder of before.
            if let Some(before) = before.iter().find(|before| before.name == secret.name) {
                secret.placeholder.clone_from(&before.placeholder);
            }
        }
        kept.take(Parts { secrets, header_rules, proxy_password })?;
        kept.write(directory)?;
        Ok(())
    }

    /// Drops the kept values that the settings do not refer to.
    pub(crate) fn drop_values(&self, directory: &SandboxDirectory) -> Result<(), RecordError> {
        let mut kept = Kept::read(directory)?;
        self.drop_others(&mut kept);
        Ok(kept.write(directory)?)
    }

    fn drop_others(&self, kept: &mut Kept) {
        let NetworkSpec { secrets, header_rules, proxy, .. } = &self.settings;
        kept.retain(secrets, header_rules, proxy.as_ref().and_then(|proxy| proxy.password.as_ref()));
    }

    /// Returns the proxy that carries the sandbox's connections, and whether its address may be below the
    /// floor. The operator's comes before a tenant's, and a user who is the operator chooses.
    pub(crate) fn proxy(&self) -> Option<(&ProxySpec, bool)> {
        let own = self.settings.proxy.as_ref().map(|proxy| (proxy, !self.is_tenants));
        let operators = self.operator.proxy.as_ref().map(|proxy| (proxy, true));
        if self.is_tenants { operators.or(own) } else { own.or(operators) }
    }

    /// Returns the proxy of a dialer, with the password as it can be read now.
    pub(crate) fn upstream(&self, kept: &Kept) -> Result<Option<Upstream>, ProxyError> {
        self.proxy().map(|(proxy, is_operators)| proxy.upstream(is_operators, kept)).transpose()
    }

    /// Returns the settings of an egress process.
    pub(crate) fn egress_settings(&self, directory: &SandboxDirectory) -> Result<NetworkSettings, RecordError> {
        let opened: Vec<String> = self.operator.opened.iter().map(ToString::to_string).collect();
        Ok(self.settings.settings(&opened, &Kept::read(directory)?))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::spec::tests::rules, *};
    use crate::network::secrets::{SecretKind, SecretSpec, SecretText, ValueSource};
    use sandboxvm_protocol::egress::HostName;
    use std::{net::IpAddr, os::unix::fs::PermissionsExt};

    fn directory() -> (tempfile::TempDir, SandboxDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        (home, directory)
    }

    #[test]
    fn kept_values_that_cannot_be_read_do_not_stop_a_change_without_secrets() {
        let (_home, directory) = directory();
        directory.replace("network.secrets", b"{").unwrap();
        let mut record = NetworkRecord::of(&NetworkOperator::default(), &NetworkSpec::default()).unwrap();
        record.keep_values(&directory).unwrap();
    }

    #[test]
    fn network_record_round_trips_and_is_private() {
        let (_home, directory) = directory();
        assert!(NetworkRecord::read(&directory).unwrap().is_none());
        let settings = NetworkSpec {
            reach: Reach::Listed,
            allow: rules(&["*.example:443", "host:5432"]),
            deny: rules(&["ads.example"]),
            dns: vec![IpAddr::from([192, 0, 2, 1])],
            hosts: vec![HostName { name: "db.example".into(), address: IpAddr::from([192, 0, 2, 2]) }],
            ..NetworkSpec::default()
        };
        let provides = Provided {
            opened: vec!["10.0.0.0/8".parse().unwrap()],
            resolvers: vec!["127.0.0.1:53".parse().unwrap()],
            trust: None,
            proxy: None,
        };
        let operator = NetworkOperator { provides, ..NetworkOperator::default() };
        let record = NetworkRecord::of(&operator, &settings).unwrap();
        record.write(&directory).unwrap();
        assert_eq!(NetworkRecord::read(&directory).unwrap().unwrap(), record);
        let path = directory.path().join(FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("\"*.example:443\"") && text.contains("\"listed\""), "{text}");
    }

    /// As the build of commit 679a1c0 wrote them.
    const OLDER: &str = r#"{
      "format": 1,
      "settings": {
        "reach": "listed", "precedence": "deny", "allow": ["a.example:443"], "deny": [], "dns": [], "hosts": [],
        "secrets": [{"name": "T", "hosts": ["a.example"], "placeholder": "p", "value": "kept"}],
        "limits": {"flows": 1024, "flows_per_second": 200, "queries_per_second": 100,
                   "bytes_out_per_second": 0, "bytes_in_per_second": 0}
      },
      "operator": {"opened": ["10.0.0.0/8"], "resolvers": ["127.0.0.1:53"], "trust": "/root.pem"},
      "is_tenants": true
    }"#;

    #[test]
    fn record_of_a_build_without_proxies_is_read_and_written_without_one() {
        let (_home, directory) = directory();
        directory.replace(FILE, OLDER.as_bytes()).unwrap();
        let record = NetworkRecord::read(&directory).unwrap().unwrap();
        assert_eq!((record.proxy(), record.upstream(&Kept::read(&directory).unwrap()).unwrap()), (None, None));
        record.write(&directory).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&directory.read(FILE, MAX_FILE).unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(OLDER).unwrap(), "older builds read it too");
    }

    #[test]
    fn password_of_the_proxy_is_kept_apart_and_the_record_names_only_the_proxy() {
        let (_home, directory) = directory();
        let with = |proxy: &str| NetworkSpec { proxy: Some(proxy.parse().unwrap()), ..NetworkSpec::default() };
        let operator = NetworkOperator::default();
        let password = |record: &NetworkRecord| match record.upstream(&Kept::read(&directory).unwrap()) {
            Ok(upstream) => format!("{:?}", upstream.unwrap().login.map(|login| login.password)),
            Err(error) => error.to_string(),
        };
        let mut record = NetworkRecord::of(&operator, &with("socks5://me:hush@proxy.example:1080")).unwrap();
        record.keep_values(&directory).unwrap();
        record.write(&directory).unwrap();
        let text = String::from_utf8(directory.read(FILE, MAX_FILE).unwrap()).unwrap();
        assert!(text.contains("proxy.example") && text.contains("\"password\": \"kept\"") && !text.contains("hush"));
        assert!(!format!("{record:?} {:?}", record.upstream(&Kept::read(&directory).unwrap())).contains("hush"));
        assert_eq!(password(&record), "Some(\"hush\")");
        // It stays with a change that refers to it, and goes with one that does not.
        let mut same = NetworkRecord::read(&directory).unwrap().unwrap();
        same.keep_values(&directory).unwrap();
        same.drop_values(&directory).unwrap();
        assert_eq!(password(&same), "Some(\"hush\")");
        let other = NetworkRecord::of(&operator, &with("socks5://me@proxy.example:1080")).unwrap();
        other.drop_values(&directory).unwrap();
        assert!(!directory.has("network.secrets"));
        assert_eq!(password(&record), "cannot read its password: its value was not kept");
        assert!(matches!(record.keep_values(&directory), Err(SecretsError::NoValue(_))));
    }

    #[test]
    fn value_that_replaces_another_is_in_force_with_the_record_that_refers_to_it_and_not_before() {
        let (_home, directory) = directory();
        let with = |value: &str, password: &str| {
            let given = |value: &str| ValueSource::Given(SecretText::new(value.into()));
            let secret = SecretSpec {
                name: "T".into(),
                hosts: vec!["a.example".into()],
                placeholder: String::new(),
                value: given(value),
                kind: SecretKind::Text,
            };
            let proxy = format!("socks5://me:{password}@proxy.example:1080").parse().unwrap();
            let spec = NetworkSpec {
                reach: Reach::Public,
                proxy: Some(proxy),
                secrets: vec![secret],
                ..NetworkSpec::default()
            };
            let mut record = NetworkRecord::of(&NetworkOperator::default(), &spec).unwrap();
            record.keep_values(&directory).unwrap();
            record
        };
        let values = || {
            let record = NetworkRecord::read(&directory).unwrap().unwrap();
            let secret = record.egress_settings(&directory).unwrap().secrets[0].value.clone().unwrap();
            let proxy = record.upstream(&Kept::read(&directory).unwrap()).unwrap().unwrap();
            (secret, proxy.login.unwrap().password)
        };
        let text = || String::from_utf8(directory.read("network.secrets", MAX_FILE).unwrap()).unwrap();
        with("first", "hush-1").write(&directory).unwrap();
        let first = ("first".to_owned(), "hush-1".to_owned());
        // No line in the audit log, and so no record.
        for _ in 0..3 {
            assert!(!with("second", "hush-2").only_narrows(&directory), "another value is something new");
            assert_eq!(values(), first);
        }
        assert_eq!(text().matches("second").count(), 1, "values of changes that were refused do not add up");
        assert!(with("first", "hush-1").only_narrows(&directory), "the same values are not");
        for (value, password) in [("third", "hush-3"), ("fourth", "hush-4"), ("fifth", "hush-4")] {
            let record = with(value, password);
            record.write(&directory).unwrap();
            record.drop_values(&directory).unwrap();
            assert_eq!(values(), (value.to_owned(), password.to_owned()));
            let kept = text();
            assert!(!kept.contains("first") && kept.matches("hush").count() == 1, "{kept}");
            // A change that keeps the values refers to them as they are.
            let mut same = NetworkRecord::read(&directory).unwrap().unwrap();
            same.keep_values(&directory).unwrap();
            assert!(same.only_narrows(&directory));
        }
    }

    #[test]
    fn proxy_of_the_operator_comes_before_that_of_a_tenant() {
        let (own, operators) = ("socks5://own.example:1", "http://operators.example:2");
        let spec = NetworkSpec { proxy: Some(own.parse().unwrap()), ..NetworkSpec::default() };
        let provides = Provided { proxy: Some(operators.parse().unwrap()), ..Provided::default() };
        let operator = NetworkOperator { provides, ..NetworkOperator::default() };
        let mut record = NetworkRecord::of(&operator, &spec).unwrap();
        let proxy = |record: &NetworkRecord| record.proxy().map(|(proxy, may_be_low)| (proxy.to_string(), may_be_low));
        assert_eq!(proxy(&record), Some((own.into(), true)), "the user is the operator");
        record.is_tenants = true;
        assert_eq!(proxy(&record), Some((operators.into(), true)));
        record.operator.proxy = None;
        assert_eq!(proxy(&record), Some((own.into(), false)));
    }

    #[test]
    fn record_of_a_newer_build_is_refused_with_a_reason() {
        let (_home, directory) = directory();
        let reason = |json: &str| {
            directory.replace(FILE, json.as_bytes()).unwrap();
            NetworkRecord::read(&directory).unwrap_err().to_string()
        };
        let unknown = reason(r#"{"format":1,"settings":{"reach":"listed","proxies":[]}}"#);
        assert!(unknown.contains("unknown field `proxies`"), "{unknown}");
        assert!(reason(r#"{"format":2,"settings":{}}"#).contains("unsupported format 2"));
        let rule = reason(r#"{"format":1,"settings":{"reach":"listed","allow":["a b"]}}"#);
        assert!(rule.contains("invalid rule \"a b\""), "{rule}");
        assert!(reason("{").contains("network.json is damaged"));
        // A record of an older build lacks what is newer.
        directory.replace(FILE, br#"{"format":1,"settings":{"reach":"public"}}"#).unwrap();
        assert_eq!(NetworkRecord::read(&directory).unwrap().unwrap().settings.reach, Reach::Public);
    }
}
