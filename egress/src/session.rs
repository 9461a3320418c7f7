//! What one sandbox's decisions are made of: policy, floor, pins, limits, and what is counted and reported. The settings
//! are replaced as a whole, and settings that cannot be read refuse everything.

use crate::{
    credentials::{Credentials, CredentialsError},
    rates::Rates,
    records::Records,
    tls::trust::Trust,
};
use sandboxvm_egress_policy::{
    floor::Floor,
    name::DomainName,
    pins::Pins,
    policy::{self, Policy},
    rule::{Rule, RuleError},
};
use sandboxvm_protocol::egress::{NetworkSettings, Precedence, Reach, SavedPin, TrafficCounters, records};
use std::{
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

/// State of a sandbox's network that its flows and its resolver share.
#[derive(Debug)]
pub struct Session {
    /// What it may reach.
    pub policy: Policy,
    /// The same for addresses that the operator opened: only rules allow them, whatever else is public.
    opened_policy: Policy,
    /// What it may never reach. The host's addresses are not in it: the dialer adds them.
    pub floor: Floor,
    /// What its questions led to.
    pub pins: Pins,
    /// The settings that `policy` and `floor` were made of.
    pub settings: NetworkSettings,
    /// Number of resolvers that the dialer knows.
    pub resolvers: u8,
    /// Header rules and secrets.
    pub credentials: Rc<Credentials>,
    /// Whom it trusts where TLS is ended.
    pub trust: Rc<Trust>,
    /// What is reported.
    pub records: Records,
    /// What is counted.
    pub counters: TrafficCounters,
    /// What is limited.
    pub rates: Rates,
    /// One reference for each body that was read to be signed, until it is sent, and one for this.
    pub hashing: Arc<()>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A rule.
    #[error("invalid rule {text:?}: {source}")]
    Rule {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        source: RuleError,
    },
    /// A network that the operator opened.
    #[error("invalid network {0:?}: expected an address, a slash and the length of its prefix")]
    Opened(String),
    /// A name with a fixed address.
    #[error("invalid host name {0:?}")]
    HostName(String),
    /// A header rule or a secret.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl Session {
    /// Returns a session that refuses everything until [`Self::configure`].
    #[must_use]
    pub fn new(resolvers: u8, trust: Trust) -> Self {
        let settings = NetworkSettings::default();
        Self {
            policy: Policy::default(),
            opened_policy: Policy::default(),
            floor: Floor::default(),
            pins: Pins::default(),
            rates: Rates::new(&settings.limits, Instant::now()),
            settings,
            resolvers,
            credentials: Rc::default(),
            trust: Rc::new(trust),
            records: Records::default(),
            counters: TrafficCounters::default(),
            hashing: Arc::default(),
        }
    }

    /// Replaces the settings.
    ///
    /// # Errors
    /// When they cannot be read. Everything is refused then.
    pub fn configure(&mut self, settings: NetworkSettings) -> Result<(), SettingsError> {
        let parsed = parse(&settings).and_then(|parsed| Ok((parsed, Credentials::new(&settings)?)));
        let ((policy, floor), credentials, settings, result) = match parsed {
            Ok((parsed, credentials)) => (parsed, credentials, settings, Ok(())),
            Err(error) => (Default::default(), Credentials::default(), NetworkSettings::default(), Err(error)),
        };
        if settings.limits != self.settings.limits {
            self.rates = Rates::new(&settings.limits, Instant::now());
        }
        self.opened_policy = match policy.reach {
            policy::Reach::Public => Policy { reach: policy::Reach::Listed, ..policy.clone() },
            policy::Reach::Listed | policy::Reach::Nothing => policy.clone(),
        };
        self.policy = policy;
        self.floor = floor;
        self.credentials = Rc::new(credentials);
        self.settings = settings;
        // The credentials have their values now.
        self.settings.secrets.clear();
        self.settings.header_rules.clear();
        self.settings.authority = None;
        result
    }

    /// Returns the policy for flows to an address that is above the floor.
    #[must_use]
    pub fn policy_for(&self, address: IpAddr) -> &Policy {
        if Floor::default().check(address).is_ok() { &self.policy } else { &self.opened_policy }
    }

    /// Takes the pins of the machine that this one is a copy of, whose egress process may have been taken over. Those with an
    /// invalid name, or with an address below the floor, are left out. To be called after [`Self::configure`].
    pub fn adopt(&mut self, pins: &[SavedPin], now: Instant) {
        for pin in pins {
            let name = pin.name.parse::<DomainName>();
            if let (Ok(name), Ok(address)) = (name, self.floor.check(pin.address)) {
                self.pins.adopt(&name, address, Duration::from_secs(pin.seconds.into()), now);
            }
        }
    }
}

fn parse(settings: &NetworkSettings) -> Result<(Policy, Floor), SettingsError> {
    let rules = |texts: &[String]| texts.iter().map(|text| rule(text)).collect::<Result<Vec<_>, _>>();
    let net = |text: &String| text.parse().map_err(|_| SettingsError::Opened(text.clone()));
    for host in &settings.hosts {
        DomainName::parse(host.name.as_bytes()).map_err(|_| SettingsError::HostName(host.name.clone()))?;
    }
    let policy = Policy {
        reach: match settings.reach {
            Reach::Nothing => policy::Reach::Nothing,
            Reach::Listed => policy::Reach::Listed,
            Reach::Public => policy::Reach::Public,
        },
        allow: rules(&settings.allow)?,
        deny: rules(&settings.deny)?,
        precedence: match settings.precedence {
            Precedence::Deny => policy::Precedence::Deny,
            Precedence::Allow => policy::Precedence::Allow,
        },
    };
    let opened = settings.opened.iter().map(net).collect::<Result<Vec<_>, _>>()?;
    Ok((policy, Floor::new(Vec::new(), opened)))
}

fn rule(text: &str) -> Result<Rule, SettingsError> {
    text.parse().map_err(|source| SettingsError::Rule { text: text.to_owned(), source })
}

/// Returns a decision as it is reported.
#[must_use]
pub fn reported(decision: &policy::Decision<'_>) -> records::Decided {
    match decision {
        policy::Decision::Allow(rule) => records::Decided::Allowed(rule.map(ToString::to_string)),
        // A flow that was never decided counts as one that no rule allows.
        policy::Decision::Inspect => refused(policy::Refusal::NotListed.to_string()),
        policy::Decision::Refuse(refusal, rule) => {
            records::Decided::Refused { reason: refusal.to_string(), rule: rule.map(ToString::to_string) }
        }
    }
}

/// Returns a refusal without a rule as it is reported.
#[must_use]
pub fn refused(reason: impl Into<String>) -> records::Decided {
    records::Decided::Refused { reason: reason.into(), rule: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_egress_policy::{policy::Decision, rule::Protocol};

    #[test]
    fn what_the_operator_opened_needs_a_rule_where_everything_is_public() {
        let mut session = Session::new(0, Trust::default());
        let settings = NetworkSettings {
            reach: Reach::Public,
            allow: vec!["10.0.0.7".to_owned(), "db.example".to_owned()],
            opened: vec!["10.0.0.0/8".to_owned()],
            ..NetworkSettings::default()
        };
        session.configure(settings).unwrap();
        let begun = |address: [u8; 4], pinned: &[DomainName]| {
            let flow = policy::Flow { protocol: Protocol::Tcp, address: address.into(), port: 443 };
            format!("{:?}", session.policy_for(flow.address).begun(&flow, pinned))
        };
        assert!(begun([1, 1, 1, 1], &[]).starts_with("Allow"));
        assert!(begun([10, 0, 0, 7], &[]).starts_with("Allow"));
        assert!(begun([10, 0, 0, 8], &[]).starts_with("Refuse"));
        assert!(begun([10, 0, 0, 8], &["rebound.example".parse().unwrap()]).starts_with("Refuse"));
        assert_eq!(begun([10, 0, 0, 8], &["db.example".parse().unwrap()]), "Inspect");
    }

    #[test]
    fn settings_that_cannot_be_read_refuse_everything() {
        let mut session = Session::new(0, Trust::default());
        let name = "example.com".parse().unwrap();
        let good = NetworkSettings {
            reach: Reach::Public,
            opened: vec!["10.0.0.0/8".to_owned()],
            ..NetworkSettings::default()
        };
        session.configure(good.clone()).unwrap();
        assert!(matches!(session.policy.asked(&name), Decision::Allow(_)));
        assert!(session.floor.check([10, 0, 0, 1].into()).is_ok());
        for bad in [
            NetworkSettings { allow: vec!["exa mple".to_owned()], ..good.clone() },
            NetworkSettings { deny: vec!["x/sctp".to_owned()], ..good.clone() },
            NetworkSettings { opened: vec!["10.0.0.0/33".to_owned()], ..good.clone() },
        ] {
            session.configure(good.clone()).unwrap();
            session.configure(bad).unwrap_err();
            assert!(matches!(session.policy.asked(&name), Decision::Refuse(..)));
            assert!(session.floor.check([10, 0, 0, 1].into()).is_err());
        }
    }
}
