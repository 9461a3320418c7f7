//! What a client needs an error to say so that it raises its own exception for it: two errors of which E2B's clients compare
//! code or text. Knows nothing of how errors are sent.

use super::{Code, ConnectError};
use crate::sandbox_plane::address::text;
use axum::http::{HeaderMap, header::USER_AGENT};

/// Who sent a request, as far as errors depend on it.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// The user that it named; empty for the sandbox's default.
    user: String,
    is_javascript: bool,
}

impl Client {
    /// `user` is whose processes and files the request is about.
    pub(super) fn of(headers: &HeaderMap, user: &[u8]) -> Self {
        let agent = text(headers, USER_AGENT.as_str()).unwrap_or_default();
        Self { user: String::from_utf8_lossy(user).into_owned(), is_javascript: agent.starts_with("e2b-js-sdk/") }
    }

    /// The error as this client understands it.
    pub(super) fn word(&self, error: ConnectError) -> ConnectError {
        match error.code {
            // Only a user that the guest does not have is unauthenticated here: tokens are checked before.
            Code::Unauthenticated => {
                ConnectError::new(Code::Unauthenticated, format!("invalid username: '{}'", self.user))
            }
            // Both clients ask then whether the sandbox is still there, and raise their exception for one that was killed or
            // reached its end of life. Python's asks after every `unavailable`; JavaScript's only after a connection that
            // broke off, which it recognizes by this code and this word.
            Code::Unavailable if error.is_end_of_sandbox && self.is_javascript => {
                let message = format!("{}; the connection to it was terminated", error.message);
                ConnectError { code: Code::Unknown, message, ..error }
            }
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn client(agent: &'static str) -> Client {
        Client::of(&HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(agent))]), b"nobody-here")
    }

    #[test]
    fn an_unknown_user_is_named_in_the_words_of_e2b() {
        let error = client("").word(ConnectError::new(Code::Unauthenticated, "no such user"));
        assert_eq!(error, ConnectError::new(Code::Unauthenticated, "invalid username: 'nobody-here'"));
    }

    #[test]
    fn each_client_recognizes_the_end_of_its_sandbox() {
        let ended = ConnectError { is_end_of_sandbox: true, ..ConnectError::new(Code::Unavailable, "it was removed") };
        let python = client("e2b-python-sdk/2.63.0").word(ended.clone());
        assert_eq!((python.code, python.message.as_str()), (Code::Unavailable, "it was removed"));
        let javascript = client("e2b-js-sdk/2.51.0 e2b-code-interpreter/2.0.0").word(ended);
        assert_eq!(javascript.code, Code::Unknown);
        assert!(javascript.message.starts_with("it was removed") && javascript.message.contains("terminated"));
        // A port that is closed, say, is no end of the sandbox.
        let other = ConnectError::new(Code::Unavailable, "x");
        assert_eq!(client("e2b-js-sdk/2.51.0").word(other.clone()), other);
    }
}
