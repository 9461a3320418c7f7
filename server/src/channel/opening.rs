//! What E2B's clients ask of a code interpreter without the sandbox's token, which they send to execute code: whether it is
//! there, and its contexts. The front says which of these requests it is and gives its body. The launcher writes the request
//! itself: a front that was taken over could send another one on a connection that it may write to.

use serde::{Deserialize, Serialize};

/// Maximum length of a body.
pub(crate) const MAX_BODY: usize = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Opening {
    method: String,
    path: String,
}

impl Opening {
    /// Nothing where the request needs a token.
    pub(crate) fn of(method: &str, path: &str) -> Option<Self> {
        let opening = Self { method: method.to_owned(), path: path.to_owned() };
        opening.is_open().then_some(opening)
    }

    /// Nothing that a server in the sandbox could read as another method or path.
    pub(crate) fn is_open(&self) -> bool {
        let mut segments = self.path.split('/').skip(1);
        let is_open_path = match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("health" | "contexts"), None, None, None) => true,
            (Some("contexts"), Some(id), None | Some("restart"), None) => {
                !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            }
            _ => false,
        };
        is_open_path && self.path.starts_with('/') && matches!(self.method.as_str(), "GET" | "POST" | "DELETE")
    }

    /// The request as a server in the sandbox reads it.
    pub(crate) fn request(&self, host: &str, body: &[u8]) -> Vec<u8> {
        let Self { method, path } = self;
        let length = body.len();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        )
        .into_bytes();
        request.extend(body);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_interpreters_paths_without_a_token_are_those_of_the_clients() {
        for open in ["/health", "/contexts", "/contexts/1a-b", "/contexts/1a-b/restart"] {
            assert!(Opening::of("GET", open).is_some(), "{open}");
        }
        for closed in [
            "/",
            "",
            "health",
            "x/health",
            "/execute",
            "//execute",
            "/contexts/",
            "/contexts//",
            "/contexts/../execute",
            "/contexts/..",
            "/contexts/%2e%2e/execute",
            "/contexts/a/execute",
            "/contexts/a/restart/",
            "/health/",
            "/health/../execute",
            "/contexts/a?b",
            "/contexts/a\r\n",
            "/contexts;/a",
            "/CONTEXTS",
        ] {
            assert_eq!(Opening::of("GET", closed), None, "{closed}");
        }
        for method in ["", "PUT", "get", "POST /execute HTTP/1.1\r\n\r\nGET"] {
            assert_eq!(Opening::of(method, "/contexts"), None, "{method}");
        }
    }

    #[test]
    fn a_body_is_framed_by_its_length() {
        let opening = Opening::of("POST", "/contexts").unwrap();
        let text = String::from_utf8(opening.request("localhost", b"{}\r\n\r\nPOST /execute HTTP/1.1")).unwrap();
        assert!(text.starts_with("POST /contexts HTTP/1.1\r\nHost: localhost\r\n"), "{text}");
        assert!(text.contains("\r\nContent-Length: 28\r\n"), "{text}");
    }
}
