//! The upstream proxy that a dialer asks for TCP connections, as its supervisor tells it.

use super::settings::MAX_RULE;
use crate::capped;
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// Maximum length of a user name or password in bytes: what SOCKS5 can carry (RFC 1929).
pub const MAX_LOGIN: usize = 255;

/// How a proxy is asked for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyProtocol {
    /// SOCKS version 5 (RFC 1928).
    Socks5,
    /// HTTP/1.1 with the method CONNECT (RFC 9110, section 9.3.6).
    Http,
}

/// A proxy. It is asked for addresses, never for names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamProxy {
    /// How it is asked.
    pub protocol: ProxyProtocol,
    /// Where it is.
    pub address: SocketAddr,
    /// What it is shown.
    pub login: Option<ProxyLogin>,
    /// True if the operator of the host chose it: its address may be below the floor then.
    pub is_operators: bool,
}

/// User name and password for a proxy, each at most [`MAX_LOGIN`] bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyLogin {
    /// User name.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub user: String,
    /// Password.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub password: String,
}

impl fmt::Debug for ProxyLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyLogin").field("user", &self.user).finish_non_exhaustive()
    }
}
