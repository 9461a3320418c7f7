//! Which sandbox and port a request is for.

use axum::http::{HeaderMap, Request, header::HOST};
use sandboxvm_protocol::identity::SandboxId;

/// A sandbox and a port of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) id: SandboxId,
    pub(crate) port: u16,
}

/// The request says where it is to go, and nothing can be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// No sandbox has such an ID.
    #[error("invalid sandbox ID: use 8-32 characters from a-z and 0-9")]
    Id,
    /// Not a port.
    #[error("invalid port: must be between 1 and 65535")]
    Port,
}

impl Address {
    /// What the headers say, else what the host begins with; nothing when neither says anything.
    pub(crate) fn of<B>(request: &Request<B>) -> Result<Option<Self>, AddressError> {
        // HTTP/2 has the host in the URI.
        let host = request.uri().authority().map(|authority| authority.host());
        let host = host.or_else(|| text(request.headers(), HOST.as_str()));
        if let Some(address) = host.and_then(Self::of_host) {
            return address.map(Some);
        }
        let Some(id) = text(request.headers(), "e2b-sandbox-id") else { return Ok(None) };
        let port = text(request.headers(), "e2b-sandbox-port").unwrap_or("49983");
        Self::of_parts(port, id).map(Some)
    }

    /// `{port}-{id}.{domain}`; nothing when the host is not of that form.
    fn of_host(host: &str) -> Option<Result<Self, AddressError>> {
        let (label, _) = host.split_once('.')?;
        let (port, id) = label.split_once('-')?;
        port.bytes().all(|byte| byte.is_ascii_digit()).then(|| Self::of_parts(port, id))
    }

    fn of_parts(port: &str, id: &str) -> Result<Self, AddressError> {
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(AddressError::Port)?;
        // Older clients put the ID of a node behind the sandbox's.
        let id = id.split('-').next().unwrap_or(id);
        Ok(Self { id: SandboxId::try_from(id.to_owned()).map_err(|_| AddressError::Id)?, port })
    }
}

pub(super) fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, headers: &[(&str, &str)]) -> Result<Option<(String, u16)>, AddressError> {
        let request =
            headers.iter().fold(Request::builder().uri(uri), |request, (name, value)| request.header(*name, *value));
        Ok(Address::of(&request.body(()).unwrap())?.map(|address| (address.id.to_string(), address.port)))
    }

    #[test]
    fn hosts_and_headers_say_where_a_request_goes() {
        let found = |port| Ok(Some(("abcdefgh".to_owned(), port)));
        assert_eq!(of("/x", &[("host", "8000-abcdefgh.e2b.app")]), found(8000));
        assert_eq!(of("http://8000-abcdefgh.e2b.app:3002/x", &[]), found(8000));
        assert_eq!(of("/x", &[("host", "127.0.0.1:3002"), ("e2b-sandbox-id", "abcdefgh")]), found(49983));
        let both = [("host", "localhost"), ("e2b-sandbox-id", "abcdefgh-1234"), ("e2b-sandbox-port", "80")];
        assert_eq!(of("/x", &both), found(80));
        assert_eq!(of("/x", &[("host", "127.0.0.1")]), Ok(None));
        assert_eq!(of("/x", &[]), Ok(None));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(of("/x", &[("e2b-sandbox-id", "../../etc")]), Err(AddressError::Id));
        assert_eq!(of("/x", &[("e2b-sandbox-id", "abcdefgh"), ("e2b-sandbox-port", "0")]), Err(AddressError::Port));
        assert_eq!(of("/x", &[("host", "70000-abcdefgh.x")]), Err(AddressError::Port));
        assert_eq!(of("/x", &[("host", "80-ab.x")]), Err(AddressError::Id));
    }
}
