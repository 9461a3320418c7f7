//! Headers that are set in requests to hosts. A rule allows no host. Owns the limits of E2B's API for them.

use super::{
    error::{EgressError, at_most, cut},
    targets::entry,
};
use sandboxvm_manager::{HeaderRuleSpec, HeaderSpec, SecretText, Target, ValueSource};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// The maxima of E2B's API.
const MAX_RULE_DOMAINS: usize = 10;
const MAX_RULE_DOMAIN: usize = 128;
const MAX_TRANSFORMS: usize = 1;
const MAX_HEADERS: usize = 20;
const MAX_HEADER_NAME: usize = 64;
const MAX_HEADER_VALUE: usize = 2048;
const MAX_MARKERS: usize = 32;
/// What a marker of a secret begins with.
const MARKER: &str = "${e2b.";

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

/// Values may be secrets.
impl fmt::Debug for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transform").field("headers", &self.headers.keys()).finish()
    }
}

impl HostRule {
    pub(super) fn headers(&self) -> impl Iterator<Item = (&String, &String)> {
        self.transform.iter().flat_map(|transform| &transform.headers)
    }
}

/// Returns the headers that rules set, within the limits of E2B's API.
pub(super) fn header_rules(rules: &BTreeMap<String, Vec<HostRule>>) -> Result<Vec<HeaderRuleSpec>, EgressError> {
    at_most("domains in network.rules", rules.len(), MAX_RULE_DOMAINS)?;
    let markers = rules.values().flatten().flat_map(HostRule::headers).map(|(_, value)| value.matches(MARKER).count());
    at_most("secrets in network.rules", markers.sum(), MAX_MARKERS)?;
    rules.iter().map(|(domain, transforms)| header_rule(domain, transforms)).collect()
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

/// True for a byte that the name of a header may have (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
