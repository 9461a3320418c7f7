//! Names that are answered without a question to others: those of the settings, and the gateway's.

use super::{
    question::Query,
    reply::{PlainRecord, record},
};
use crate::stack::addresses::{GATEWAY_V4, GATEWAY_V6};
use domain::base::iana::Rtype;
use sandboxvm_egress_policy::name::DomainName;
use sandboxvm_protocol::egress::NetworkSettings;
use std::{net::IpAddr, time::Duration};

/// The name under which a guest reaches services of the host.
pub const HOST_NAME: &str = "host.internal";

/// How long such an answer is valid.
pub const LIFE: Duration = Duration::from_secs(60);

/// What is known here.
#[derive(Debug, PartialEq, Eq)]
pub enum Local {
    /// These addresses of the type that was asked for. There may be none.
    Addresses(Vec<IpAddr>),
    /// The name does not exist.
    Missing,
}

/// Returns what is known of a name, or none for a name of others.
#[must_use]
pub fn find(name: &DomainName, rtype: Rtype, settings: &NetworkSettings) -> Option<Local> {
    let is_asked = |address: &IpAddr| match address {
        IpAddr::V4(_) => rtype == Rtype::A,
        IpAddr::V6(_) => rtype == Rtype::AAAA,
    };
    let known = settings.hosts.iter().filter(|host| host.name.parse::<DomainName>().as_ref() == Ok(name));
    let mut known: Vec<IpAddr> = known.map(|host| host.address).collect();
    if known.is_empty() && name.as_str() == HOST_NAME {
        known = vec![GATEWAY_V4.into(), GATEWAY_V6.into()];
    }
    if !known.is_empty() {
        return Some(Local::Addresses(known.into_iter().filter(is_asked).collect()));
    }
    // The guest's own files have this name, and no resolver does (RFC 6761, 6.3).
    let last = name.as_str().rsplit('.').next();
    (last == Some("localhost")).then_some(Local::Missing)
}

/// Returns the records of an answer.
#[must_use]
pub fn records(query: &Query, addresses: &[IpAddr]) -> Vec<PlainRecord> {
    let ttl = u32::try_from(LIFE.as_secs()).unwrap_or(0);
    let data = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    addresses.iter().filter_map(|address| record(&query.wire_name, query.rtype, ttl, data(address))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::egress::HostName;

    #[test]
    fn names_of_the_settings_and_of_the_host_are_known() {
        let host = |name: &str, address: &str| HostName { name: name.to_owned(), address: address.parse().unwrap() };
        let settings = NetworkSettings {
            hosts: vec![host("DB.example", "10.0.0.5"), host("db.example.", "2600::5")],
            ..NetworkSettings::default()
        };
        let find = |name: &str, rtype| find(&name.parse().unwrap(), rtype, &settings);
        let addresses = |address: &str| Some(Local::Addresses(vec![address.parse().unwrap()]));
        assert_eq!(find("db.example", Rtype::A), addresses("10.0.0.5"));
        assert_eq!(find("db.example", Rtype::AAAA), addresses("2600::5"));
        assert_eq!(find("db.example", Rtype::TXT), Some(Local::Addresses(Vec::new())));
        assert_eq!(find("host.internal", Rtype::A), addresses("198.18.0.1"));
        assert_eq!(find("host.internal", Rtype::AAAA), addresses("fd00:5b::1"));
        assert_eq!(find("a.localhost", Rtype::A), Some(Local::Missing));
        assert_eq!(find("notlocalhost", Rtype::A), None);
        assert_eq!(find("a.db.example", Rtype::A), None);
    }
}
