//! What the first bytes of a connection say about the host that they are for. The bytes are the guest's, and so hostile:
//! readers here take bounded memory, look at each byte a bounded number of times, and say [`Shown::Hidden`] of everything
//! that two readers could understand in two ways.

mod client_hello;
mod cursor;
mod http_head;

use crate::policy::Shown;

/// Maximum number of bytes that are looked at before a connection counts as hiding its name.
pub const MAX_OPENING: usize = 64 * 1024;

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// More are needed.
    More,
    /// The name is known, or it is known that there is none.
    Done(Opening),
}

/// How a connection opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Its protocol.
    pub kind: Kind,
    /// The name in it.
    pub shown: Shown,
}

/// A protocol by the first bytes of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// TLS.
    Tls,
    /// HTTP/1 without TLS. Each request of the connection can be for another host.
    Http,
    /// Another one, which shows no name.
    Other,
}

/// Looks at everything that a client sent so far.
///
/// Call it with the bytes from the first one on, again whenever there are more. A connection whose client sends nothing
/// because its server speaks first is [`Kind::Other`]; only its caller can know that, by the clock.
#[must_use]
pub fn look(opening: &[u8]) -> Progress {
    let (kind, read) = if client_hello::is_tls(opening) {
        (Kind::Tls, client_hello::read(opening))
    } else {
        match http_head::begins(opening) {
            Some(true) => (Kind::Http, http_head::read(opening)),
            Some(false) => (Kind::Other, Some(Shown::Nameless)),
            None => (Kind::Http, None),
        }
    };
    match read {
        Some(shown) => Progress::Done(Opening { kind, shown }),
        None if opening.len() >= MAX_OPENING => Progress::Done(Opening { kind, shown: Shown::Hidden }),
        None => Progress::More,
    }
}
