//! The source of an epoll event, packed into the 64 bits that epoll stores with it.

use crate::slab::Key;

/// A source of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A connection waits to be accepted.
    Listener,
    /// A child ended.
    Signals,
    /// A connection, by its key.
    Connection(Key),
    /// The program's side of a relay, by the relay's key.
    Relay(Key),
    /// A pipe of a process, by the process's key.
    Pipe(Pipe, Key),
}

/// A pipe of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipe {
    /// Stdin.
    Stdin,
    /// Stdout, or the terminal.
    Stdout,
    /// Stderr.
    Stderr,
}

impl Token {
    /// Packs the kind into bits 56 to 63, the index into 32 to 55, and the generation into the
    /// lower bits.
    pub(super) fn pack(self) -> u64 {
        let none = Key { index: 0, generation: 0 };
        let (kind, key): (u64, Key) = match self {
            Self::Listener => (0, none),
            Self::Signals => (1, none),
            Self::Connection(key) => (2, key),
            Self::Pipe(Pipe::Stdin, key) => (3, key),
            Self::Pipe(Pipe::Stdout, key) => (4, key),
            Self::Pipe(Pipe::Stderr, key) => (5, key),
            Self::Relay(key) => (6, key),
        };
        kind << 56 | u64::from(key.index) << 32 | u64::from(key.generation)
    }

    /// Reads a packed token: the inverse of [`Token::pack`]. Returns `None` for other values.
    pub(super) fn unpack(bits: u64) -> Option<Self> {
        let [kind, ..] = bits.to_be_bytes();
        let index = (bits >> 32) as u32 & 0x00ff_ffff;
        let key = Key { index, generation: bits as u32 };
        Some(match kind {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Connection(key),
            3 => Self::Pipe(Pipe::Stdin, key),
            4 => Self::Pipe(Pipe::Stdout, key),
            5 => Self::Pipe(Pipe::Stderr, key),
            6 => Self::Relay(key),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Pipe, Token};

    #[test]
    fn every_token_survives_packing() {
        let key = Key { index: 0x00ab_cdef, generation: 0xfedc_ba98 };
        let pipes = [Pipe::Stdin, Pipe::Stdout, Pipe::Stderr].map(|pipe| Token::Pipe(pipe, key));
        for token in
            [Token::Listener, Token::Signals, Token::Connection(key), Token::Relay(key)].into_iter().chain(pipes)
        {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
