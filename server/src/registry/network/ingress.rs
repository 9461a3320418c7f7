//! How servers in a sandbox are reached from outside: what its client said of them when it was made.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The port that envd's API is on; no server of the guest's is reached there.
pub(crate) const ENVD_PORT: u16 = 49983;
/// Maximum length of a host in bytes: that of a name of DNS, a port and the placeholder.
const MAX_HOST: usize = 253 + ":65535".len() + PORT.len();
/// Stands for the port in a mask.
const PORT: &str = "${PORT}";
/// Maximum number of ports that speak TLS.
const MAX_HTTPS_PORTS: usize = 64;

/// Why a client's word makes no sense. The texts are E2B's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IngressError {
    #[error("mask request host '{0}' is not ASCII. Please use ASCII characters only.")]
    NotAscii(String),
    #[error("mask request host is not valid: {0}")]
    Mask(String),
    #[error("invalid port {0} in httpsPorts: must be between 1 and 65535, and not {ENVD}", ENVD = ENVD_PORT)]
    Port(u64),
    #[error("invalid httpsPorts: must have at most {MAX_HTTPS_PORTS} ports")]
    Ports,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ingress {
    /// The `Host` header that servers receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mask_request_host: Option<String>,
    /// Ports whose servers speak TLS.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    https_ports: BTreeSet<u16>,
}

impl Ingress {
    pub(crate) fn new(mask_request_host: Option<String>, https_ports: &[u64]) -> Result<Self, IngressError> {
        let mask = mask_request_host.filter(|mask| !mask.is_empty());
        if let Some(mask) = &mask {
            check(mask)?;
        }
        let port = |port: &u64| match u16::try_from(*port) {
            Ok(port) if port != 0 && port != ENVD_PORT => Ok(port),
            _ => Err(IngressError::Port(*port)),
        };
        let https_ports: BTreeSet<u16> = https_ports.iter().map(port).collect::<Result<_, _>>()?;
        if https_ports.len() > MAX_HTTPS_PORTS {
            return Err(IngressError::Ports);
        }
        Ok(Self { mask_request_host: mask, https_ports })
    }

    /// What a request to a port has as its host, where it is not the client's.
    pub(crate) fn host(&self, port: u16) -> Option<String> {
        self.mask_request_host.as_ref().map(|mask| mask.replace(PORT, &port.to_string()))
    }

    /// True when the server on a port speaks TLS.
    pub(crate) fn is_https(&self, port: u16) -> bool {
        self.https_ports.contains(&port)
    }

    pub(crate) fn mask_request_host(&self) -> Option<&str> {
        self.mask_request_host.as_deref()
    }

    pub(crate) fn https_ports(&self) -> &BTreeSet<u16> {
        &self.https_ports
    }
}

/// A host, or a host and a port, either with the placeholder.
fn check(mask: &str) -> Result<(), IngressError> {
    if !mask.is_ascii() {
        return Err(IngressError::NotAscii(mask.to_owned()));
    }
    let plain = mask.replace(PORT, "1");
    let (host, port) = plain.rsplit_once(':').map_or((plain.as_str(), None), |(host, port)| (host, Some(port)));
    let is_host = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    if is_host && is_port && mask.len() <= MAX_HOST { Ok(()) } else { Err(IngressError::Mask(mask.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_names_a_host_for_each_port() {
        let of = |mask: &str| Ingress::new(Some(mask.to_owned()), &[]);
        assert_eq!(of("${PORT}-app.example.test").unwrap().host(3000).as_deref(), Some("3000-app.example.test"));
        assert_eq!(of("localhost:${PORT}").unwrap().host(80).as_deref(), Some("localhost:80"));
        assert_eq!(of("").unwrap().host(80), None);
        assert_eq!(of("ü.test"), Err(IngressError::NotAscii("ü.test".into())));
        let long = "a".repeat(MAX_HOST + 1);
        for wrong in ["a b", "a\r\nx: y", "http://a", "a:", "a:0", ":80", "${port}", "a/b", &long] {
            assert_eq!(of(wrong), Err(IngressError::Mask(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn ports_that_speak_tls_are_ports_of_the_sandbox() {
        let of = |ports: &[u64]| Ingress::new(None, ports);
        let some = of(&[3000, 8443, 3000]).unwrap();
        assert!(some.is_https(3000) && some.is_https(8443) && !some.is_https(80));
        for wrong in [0, 65536, 49983] {
            assert_eq!(of(&[wrong]), Err(IngressError::Port(wrong)));
        }
        assert_eq!(of(&(1..=65).collect::<Vec<_>>()), Err(IngressError::Ports));
    }
}
