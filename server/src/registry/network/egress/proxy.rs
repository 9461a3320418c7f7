//! The proxy that a client names for the connections of its sandbox, and which parts of it are secret.

use super::error::EgressError;
use sandboxvm_manager::{ProxyError, ProxySpec, SecretText, ValueSource};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A proxy for the connections of a sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EgressProxy {
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<ProxyTls>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProxyTls {
    #[serde(default)]
    enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_cert: Option<String>,
}

/// The login may be a secret.
impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl EgressProxy {
    /// Returns the proxy that these words mean.
    pub(super) fn spec(&self) -> Result<ProxySpec, EgressError> {
        let Self { address, username, password, tls } = self;
        if tls.as_ref().is_some_and(|tls| tls.enabled) {
            return Err(EgressError::Unsupported("network.egressProxy.tls"));
        }
        // E2B's proxies are SOCKS5. The address is not the place for a login.
        let is_address = !address.contains(['@', '/']);
        let parsed = Some(address).filter(|_| is_address).map(|address| format!("socks5://{address}").parse());
        let proxy: ProxySpec = match parsed {
            Some(Ok(proxy)) => proxy,
            Some(Err(ProxyError::Text)) | None => return Err(EgressError::ProxyAddress),
            Some(Err(error)) => return Err(EgressError::Proxy(error)),
        };
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let password = given(password).map(|password| ValueSource::Given(SecretText::new(password)));
        let proxy = ProxySpec { user: given(username), password, ..proxy };
        proxy.check().map_err(EgressError::Proxy)?;
        Ok(proxy)
    }

    /// Returns what a client reads back: all but the password and the certificate.
    pub(super) fn shown(&self) -> Self {
        let tls = self.tls.as_ref().map(|tls| ProxyTls { ca_cert: None, ..tls.clone() });
        Self { password: None, tls, ..self.clone() }
    }

    /// Returns what a copy of the sandbox gets: what is shown, without the login.
    pub(super) fn of_copy(&self) -> Self {
        Self { username: None, ..self.shown() }
    }

    /// Returns true if these words have a password.
    pub(super) fn has_password(&self) -> bool {
        self.password.is_some()
    }
}
