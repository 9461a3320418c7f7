//! The targets that clients name in lists: how they are written. What a list means is not decided here.

use super::error::{EgressError, at_most, cut};
use ipnet::IpNet;
use sandboxvm_manager::{Rule, Target};

/// Maximum number of entries of `allowOut` and of `denyOut`.
const MAX_ENTRIES: usize = 1000;

/// Returns the rules of `denyOut`, which has networks only.
pub(super) fn denied(texts: &[String]) -> Result<Vec<Rule>, EgressError> {
    at_most("entries of denyOut", texts.len(), MAX_ENTRIES)?;
    let parse = |text: &String| match entry(text) {
        Ok(rule) if matches!(rule.target(), Target::Net(_)) => Ok(rule),
        _ => Err(EgressError::Denied(cut(text))),
    };
    texts.iter().map(parse).collect()
}

/// Returns the rules of `allowOut`.
pub(super) fn allowed(texts: &[String]) -> Result<Vec<Rule>, EgressError> {
    at_most("entries of allowOut", texts.len(), MAX_ENTRIES)?;
    let parse = |text: &String| entry(text).map_err(|problem| EgressError::Allowed { entry: cut(text), problem });
    texts.iter().map(parse).collect()
}

/// Parses an IP address, a network, a domain or `*.domain`, each optionally with a port. A network may have bits that its prefix
/// does not cover, as with E2B.
pub(super) fn entry(text: &str) -> Result<Rule, String> {
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
pub(super) fn covers_all(rule: &Rule) -> bool {
    let is_all = |net: &IpNet| net.prefix_len() == 0 && net.addr().is_ipv4();
    rule.is_unrestricted() && matches!(rule.target(), Target::Net(net) if is_all(net))
}
