//! Where on the host a port of a sandbox is to be found, as users write it: `GUEST`, `HOST:GUEST`, `ADDRESS:HOST:GUEST` or
//! `/PATH:GUEST`. Without an address it is this host's loopback, so that nothing of a sandbox is open to others by mistake.

use sandboxvm_protocol::agent::port::PortNumber;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Most ports of one sandbox.
pub(crate) const MAX_PORTS: usize = 64;

/// `sun_path` has 108 bytes with its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Why something is no place to publish a port at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: expected GUEST, HOST:GUEST, ADDRESS:HOST:GUEST or /PATH/TO.SOCK:GUEST")]
pub struct PublishError(String);

/// An end on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostEnd {
    /// A TCP port; 0 is any that is free.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl HostEnd {
    /// Any free port of the loopback.
    pub const ANY: Self = Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));

    /// True when others than this host can reach it.
    #[must_use]
    pub fn is_open_to_others(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().is_loopback())
    }
}

impl fmt::Display for HostEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl From<HostEnd> for String {
    fn from(end: HostEnd) -> Self {
        end.to_string()
    }
}

impl TryFrom<String> for HostEnd {
    type Error = PublishError;

    fn try_from(text: String) -> Result<Self, PublishError> {
        if text.contains('/') {
            return unix(&text);
        }
        text.parse().map(Self::Tcp).map_err(|_| PublishError(format!("invalid address {text:?}")))
    }
}

/// A port of a sandbox and its end on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Port of the guest's loopback.
    pub guest: PortNumber,
    /// Its end on the host.
    pub host: HostEnd,
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        if text.ends_with("/udp") || text.ends_with("/sctp") {
            return Err(PublishError("only TCP ports can be published".into()));
        }
        let text = text.strip_suffix("/tcp").unwrap_or(text);
        let Some((host, guest)) = text.rsplit_once(':') else {
            return Ok(Self { guest: port_of_guest(text)?, host: HostEnd::ANY });
        };
        Ok(Self { guest: port_of_guest(guest)?, host: host_end(host)? })
    }
}

fn port_of_guest(text: &str) -> Result<PortNumber, PublishError> {
    let number = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number: u16 = number.ok_or_else(|| PublishError(format!("invalid guest port {text:?}")))?;
    PortNumber::try_from(number).map_err(|error| PublishError(error.to_string()))
}

fn host_end(text: &str) -> Result<HostEnd, PublishError> {
    if text.contains('/') {
        return unix(text);
    }
    let (address, port) = match text.rsplit_once(':') {
        Some((address, port)) => (Some(address), port),
        None => (None, text),
    };
    let number = if port.is_empty() { Some(0) } else { port.parse::<u16>().ok() };
    let number = number.ok_or_else(|| PublishError(format!("invalid host port {port:?}")))?;
    let address = match address {
        None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(address) => {
            let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
            bare.parse().map_err(|_| PublishError(format!("invalid host address {address:?}")))?
        }
    };
    Ok(HostEnd::Tcp(SocketAddr::new(address, number)))
}

fn unix(text: &str) -> Result<HostEnd, PublishError> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(PublishError(format!("invalid socket path {text:?}, which does not begin with '/'")));
    }
    if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        return Err(PublishError(format!(
            "the socket path has {} bytes, and the maximum is {MAX_SOCKET_PATH}",
            text.len()
        )));
    }
    Ok(HostEnd::Unix(path.to_owned()))
}

/// A port that is published, or was to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Port of the guest's loopback.
    pub guest_port: PortNumber,
    /// Its end on the host.
    pub host: HostEnd,
    /// Why nobody listens there: something else has taken it while the supervisor was gone.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_it() {
        for (text, host, guest) in [
            ("8000", "127.0.0.1:0", 8000),
            ("8080:8000", "127.0.0.1:8080", 8000),
            (":8000/tcp", "127.0.0.1:0", 8000),
            ("127.0.0.1:8080:8000", "127.0.0.1:8080", 8000),
            ("127.0.0.1::8000", "127.0.0.1:0", 8000),
            ("localhost:8080:80", "127.0.0.1:8080", 80),
            ("0.0.0.0:8080:65535", "0.0.0.0:8080", 65535),
            ("[::1]:8080:8000", "[::1]:8080", 8000),
            ("/run/my.sock:8000", "/run/my.sock", 8000),
        ] {
            let publish: Publish = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((publish.host.to_string().as_str(), publish.guest.get()), (host, guest), "{text}");
            assert_eq!(HostEnd::try_from(publish.host.to_string()).unwrap(), publish.host);
        }
        for text in ["", "0", "65536", "x", "-1", "+1", "80:x:80", "127.0.0.1:80", "80/udp", "a:b:c", "./x:80", "80:"] {
            assert!(text.parse::<Publish>().is_err(), "{text:?}");
        }
        assert!(format!("/{}:80", "x".repeat(200)).parse::<Publish>().is_err());
    }

    #[test]
    fn only_the_loopback_is_for_this_host_alone() {
        let open = |text: &str| text.parse::<Publish>().unwrap().host.is_open_to_others();
        assert!(!open("80") && !open("127.9.9.9:1:80") && !open("[::1]:1:80") && !open("/x:80"));
        assert!(open("0.0.0.0:1:80") && open("10.0.0.1::80") && open("[::]:1:80"));
    }
}
