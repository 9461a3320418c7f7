//! Why a client's words have no meaning here. Owns the texts, and how much of a client's own text an error repeats.

use sandboxvm_manager::ProxyError;

/// Maximum length of an entry that an error repeats.
const MAX_ENTRY: usize = 320;

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

/// Refuses a list that is longer than `most`.
pub(super) fn at_most(what: &'static str, count: usize, most: usize) -> Result<(), EgressError> {
    if count > most { Err(EgressError::TooMany { what, count, most }) } else { Ok(()) }
}

/// A client's text for an error.
pub(super) fn cut(text: &str) -> String {
    let mut text = text.to_owned();
    text.truncate(text.floor_char_boundary(MAX_ENTRY));
    text
}
