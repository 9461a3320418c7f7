//! What a sandbox may reach, as its supervisor tells its egress process. Rules are texts here: the
//! crate `sandboxvm-egress-policy` parses them, on both sides.

use super::{MAX_LIST, MAX_RESOLVERS};
use crate::{capped, vmm::FdIndex};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// Maximum length of a rule in bytes.
pub const MAX_RULE: usize = 320;

/// Maximum length of a secret, a header value or a key in bytes.
pub const MAX_SECRET: usize = 16 * 1024;

/// Maximum number of hosts with header rules.
pub const MAX_HEADER_RULES: usize = 64;

/// Maximum number of files with certificates of authorities.
pub const MAX_TRUST_FILES: usize = 2;

/// Maximum number of headers that one rule sets.
pub const MAX_HEADERS: usize = 20;

/// What a sandbox may reach before any rule is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Nothing, whatever the rules say.
    #[default]
    Nothing,
    /// What a rule allows.
    Listed,
    /// Every address above the floor.
    Public,
}

/// Which list wins when a rule of each matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precedence {
    /// The command line's.
    #[default]
    Deny,
    /// E2B's.
    Allow,
}

/// All that the egress process needs to decide about a guest's traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSettings {
    /// Without rules.
    pub reach: Reach,
    /// Between the lists.
    pub precedence: Precedence,
    /// Rules that allow, each at most [`MAX_RULE`] bytes.
    #[serde(with = "capped::List::<MAX_LIST>")]
    pub allow: Vec<String>,
    /// Rules that deny.
    #[serde(with = "capped::List::<MAX_LIST>")]
    pub deny: Vec<String>,
    /// Networks that the operator opened although they are below the floor, each as `address/length`.
    #[serde(with = "capped::List::<MAX_LIST>")]
    pub opened: Vec<String>,
    /// Names with fixed addresses. They grant nothing: the address must be allowed.
    #[serde(with = "capped::List::<MAX_LIST>")]
    pub hosts: Vec<HostName>,
    /// The tenant's resolvers in place of the operator's.
    #[serde(with = "capped::List::<MAX_RESOLVERS>")]
    pub dns: Vec<IpAddr>,
    /// Hosts where TLS is ended to set headers. They grant nothing: the host must be allowed.
    #[serde(with = "capped::List::<MAX_HEADER_RULES>")]
    pub header_rules: Vec<HeaderRule>,
    /// Secrets that may appear, as their placeholder, in headers of requests to some hosts.
    #[serde(with = "capped::List::<MAX_HEADER_RULES>")]
    pub secrets: Vec<SecretValue>,
    /// The authority that the guest trusts where TLS is ended. Without one, the hosts of header rules
    /// and secrets are refused.
    pub authority: Option<AuthorityKey>,
    /// Limits.
    pub limits: EgressLimits,
}

/// A name with a fixed address, as `--add-host` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostName {
    /// The name.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// Headers that are set in each request to the hosts that a pattern matches. An exact name beats the
/// longest wildcard, and only one rule is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRule {
    /// `name` or `*.name`.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub host: String,
    /// The headers. They replace those of the guest.
    #[serde(with = "capped::List::<MAX_HEADERS>")]
    pub headers: Vec<HeaderTemplate>,
}

/// A header that is set.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderTemplate {
    /// Its name.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub name: String,
    /// Its value, which may be a secret.
    #[serde(with = "capped::Line::<MAX_SECRET>")]
    pub value: String,
}

impl fmt::Debug for HeaderTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeaderTemplate").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A secret that the guest knows only by a placeholder.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValue {
    /// Its name, for records.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub name: String,
    /// What the guest has in its place: at least 32 bytes that cannot be guessed.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub placeholder: String,
    /// Patterns of hosts to which it may go.
    #[serde(with = "capped::List::<MAX_HEADER_RULES>")]
    pub hosts: Vec<String>,
    /// The secret, at most [`MAX_SECRET`] bytes, or why it cannot be read. Its hosts are refused then.
    pub value: Result<String, String>,
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretValue").field("name", &self.name).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Private key of the sandbox's certificate authority, as PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityKey(#[serde(with = "capped::Line::<MAX_SECRET>")] pub String);

impl fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityKey").finish_non_exhaustive()
    }
}

/// Whom the egress process trusts where it ends TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustAnchors {
    /// Files with certificates of the authorities that sign servers' certificates, as PEM: those of
    /// the host and of the operator. They are files because a host's list is larger than a message,
    /// and because they are read only when TLS is ended for the first time.
    #[serde(with = "capped::List::<MAX_TRUST_FILES>")]
    pub files: Vec<FdIndex>,
}

/// Limits of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressLimits {
    /// Maximum number of flows at the same time.
    pub flows: u32,
    /// Maximum number of new flows in a second, after a burst of as many.
    pub flows_per_second: u32,
    /// Maximum number of DNS queries in a second, after a burst of as many.
    pub queries_per_second: u32,
    /// Maximum number of bytes in a second that the guest sends; 0 for no limit.
    pub bytes_out_per_second: u64,
    /// Maximum number of bytes in a second that the guest receives; 0 for no limit.
    pub bytes_in_per_second: u64,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            flows: 1024,
            flows_per_second: 200,
            queries_per_second: 100,
            bytes_out_per_second: 0,
            bytes_in_per_second: 0,
        }
    }
}
