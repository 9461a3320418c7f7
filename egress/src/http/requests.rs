//! The requests of one connection: each head is shown to the policy before it is forwarded.

use super::body::{Ambiguous, Body, Part};
use sandboxvm_egress_policy::{
    inspect::{Kind, Progress, look},
    policy::Shown,
};

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// What follows a request is not one.
    #[error("the connection sent something other than HTTP requests")]
    NotARequest,
    /// See there.
    #[error(transparent)]
    Body(#[from] Ambiguous),
    /// A request for another protocol that is not the first of its connection, or has a body.
    #[error("a request for another protocol is only forwarded as the first of its connection")]
    LateUpgrade,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The head of a request. Forward it if its host is allowed.
    Head {
        /// Its bytes.
        len: usize,
        /// Its host.
        shown: Shown,
        /// Whether it asks for another protocol: nothing behind it may be forwarded until the response has said which.
        is_upgrade: bool,
    },
    /// This many bytes of a body, to be forwarded.
    Body(usize),
    /// More bytes are needed.
    More,
}

/// Reads the requests of one connection.
#[derive(Debug, Default)]
pub struct Requests {
    body: Option<Body>,
    count: u64,
}

impl Requests {
    /// Looks at what the client sent and was not taken yet.
    ///
    /// # Errors
    /// Every [`RequestError`].
    pub fn next(&mut self, input: &[u8]) -> Result<Step, RequestError> {
        if let Some(body) = &mut self.body {
            return Ok(match body.next(input)? {
                Part::Some(count) => Step::Body(count),
                Part::Last(count) => {
                    self.body = None;
                    Step::Body(count)
                }
                Part::More => Step::More,
            });
        }
        match input.first() {
            None => return Ok(Step::More),
            // No method begins otherwise, and TLS is not waited for.
            Some(first) if !first.is_ascii_uppercase() => return Err(RequestError::NotARequest),
            Some(_) => {}
        }
        let opening = match look(input) {
            Progress::More => return Ok(Step::More),
            Progress::Done(opening) if opening.kind == Kind::Http => opening,
            Progress::Done(_) => return Err(RequestError::NotARequest),
        };
        let Shown::Name(_) = &opening.shown else {
            // It is not known where such a head ends, so nothing behind it can be looked at.
            return Ok(Step::Head { len: input.len(), shown: opening.shown, is_upgrade: false });
        };
        // A head with a name is complete, and was held to the letter of the specification.
        let end = input.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or(RequestError::NotARequest)?;
        let head = &input[..end];
        let is_old = head.split(|byte| *byte == b'\r').next().is_some_and(|line| line.ends_with(b"HTTP/1.0"));
        let is_upgrade = fields(head).any(|(name, _)| name.eq_ignore_ascii_case(b"upgrade"));
        self.body = Body::announced(is_old, fields(head))?;
        if is_upgrade && (self.count > 0 || self.body.is_some()) {
            return Err(RequestError::LateUpgrade);
        }
        self.count += 1;
        Ok(Step::Head { len: end + 4, shown: opening.shown, is_upgrade })
    }

    /// Returns true if no request is incomplete.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.body.is_none()
    }
}

/// The fields of a head behind its first line.
fn fields(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    head.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hosts(input: &[u8], piece: usize) -> Result<Vec<String>, RequestError> {
        let (mut requests, mut hosts) = (Requests::default(), Vec::new());
        let (mut at, mut shown) = (0, 0);
        loop {
            match requests.next(&input[at..shown])? {
                Step::More if shown == input.len() => return Ok(hosts),
                Step::More => shown = (shown + piece).min(input.len()),
                Step::Body(count) => at += count,
                Step::Head { len, shown, .. } => {
                    at += len;
                    match shown {
                        Shown::Name(name) => hosts.push(name.to_string()),
                        other => hosts.push(format!("{other:?}")),
                    }
                }
            }
        }
    }

    #[test]
    fn every_request_of_a_connection_shows_its_host() {
        let input = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n\
            POST / HTTP/1.1\r\nHost: b.example\r\nContent-Length: 20\r\n\r\nGET / HTTP/1.1\r\nHos\
            POST / HTTP/1.1\r\nHost: c.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
            GET / HTTP/1.1\r\nHost: d.example\r\n\r\n";
        for piece in 1..=input.len() {
            assert_eq!(hosts(input, piece).unwrap(), ["a.example", "b.example", "c.example", "d.example"]);
        }
    }

    #[test]
    fn what_is_not_a_request_ends_the_connection() {
        let first = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        for (second, error) in [
            ("\r\n", RequestError::NotARequest),
            ("\x16\x03\x01\x00\x01\x01", RequestError::NotARequest),
            ("GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n", RequestError::LateUpgrade),
            ("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: x\r\n\r\n", RequestError::Body(Ambiguous)),
            ("POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n", RequestError::Body(Ambiguous)),
        ] {
            assert_eq!(hosts([first, second].concat().as_bytes(), 7), Err(error), "{second:?}");
        }
        // A field whose end is a space and not in the list of what is trimmed by servers is still a second length.
        let smuggled = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nContent-Length : 6\r\n\r\n";
        assert_eq!(hosts(smuggled.as_bytes(), 7).unwrap(), ["Hidden"]);
    }

    #[test]
    fn a_first_request_may_ask_for_another_protocol() {
        let mut requests = Requests::default();
        let head = b"GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n";
        assert!(matches!(requests.next(head).unwrap(), Step::Head { is_upgrade: true, .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1_usize..50) {
            let _ = hosts(&bytes, piece);
            let _ = hosts(&[&b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"[..], &bytes].concat(), piece);
        }
    }
}
