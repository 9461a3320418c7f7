//! Framing shared by both wires: an eight-byte header, then a body whose length the header states.
//!
//! ```text
//! offset  size  field
//! 0       2     magic: b"SA" host <-> agent, b"SC" manager <-> VMM
//! 2       1     oldest wire version that has this message; for a stream frame, the oldest version
//! 3       1     kind (see `FrameKind`)
//! 4       4     body length in bytes, little endian, at most the receiver's cap for that kind
//! ```
//! A frame states the oldest version that has what is in it, not the sender's: so peers of different age read each other as
//! long as they say nothing new, also before they have agreed on a version ([`Message::since`]). A sender that knows which
//! version its peer speaks may state that one ([`Wire::speaking`]), so that the peer knows that it may answer in it.
//!
//! The transports (vsock, Unix streams) are reliable and stay within one machine, so frames have no
//! checksum. Files that outlive a process have one. A receiver never stores more than one body of
//! the maximum size that it was created with.

use serde::{Serialize, de::DeserializeOwned};

/// Bytes in a frame header.
pub const HEADER_LEN: usize = 8;

/// Largest body of a stream (stdin, stdout, stderr) frame, in bytes.
pub const MAX_STREAM_BODY: usize = 64 * 1024;

/// One of the two wires, and its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// First two bytes of every frame.
    pub magic: [u8; 2],
    /// Newest version that is sent and understood.
    pub version: u8,
    /// Oldest version that is understood.
    pub oldest: u8,
}

/// A type that travels as the body of a message frame.
pub trait Message: Serialize {
    /// Returns the first wire version that has all of this value.
    fn since(&self) -> u8 {
        1
    }
}

/// The content of a frame's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A message of the wire's enum, encoded with postcard.
    Message = 0x01,
    /// Raw bytes for the standard input of the process on this connection.
    Stdin = 0x10,
    /// Raw bytes of its standard output (or of its terminal).
    Stdout = 0x11,
    /// Raw bytes of its standard error.
    Stderr = 0x12,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Message),
            0x10 => Some(Self::Stdin),
            0x11 => Some(Self::Stdout),
            0x12 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// Why bytes are not a valid frame, or a value cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer uses another protocol.
    #[error("frame starts with {found:02x?} instead of {expected:02x?}: the peer speaks another protocol")]
    Magic {
        /// Bytes found.
        found: [u8; 2],
        /// Bytes of this wire.
        expected: [u8; 2],
    },
    /// This build does not read the peer's version.
    #[error("unsupported wire version {found}: this build reads {oldest} to {newest}")]
    Version {
        /// Version in the frame.
        found: u8,
        /// Oldest version read here.
        oldest: u8,
        /// Newest version read here.
        newest: u8,
    },
    /// Unknown frame kind.
    #[error("unknown frame kind {0:#04x}")]
    Kind(u8),
    /// The stated length exceeds the maximum. Nothing was stored.
    #[error("{kind:?} frame of {len} bytes exceeds the limit of {cap}")]
    TooLong {
        /// Kind of the frame.
        kind: FrameKind,
        /// Stated length in bytes.
        len: usize,
        /// Cap in bytes.
        cap: usize,
    },
    /// The body is not a valid message of this wire.
    #[error("cannot decode the message body: {0}")]
    Body(postcard::Error),
    /// Bytes follow the message inside its body.
    #[error("{0} stray bytes after the message in its frame")]
    Trailing(usize),
    /// The value cannot be encoded. Does not happen for types of this crate below their maximum
    /// sizes.
    #[error("cannot encode the message: {0}")]
    Encode(postcard::Error),
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Version that the sender stated.
    pub version: u8,
    /// Kind of the body.
    pub kind: FrameKind,
    /// Body length in bytes.
    pub len: usize,
}

impl Wire {
    /// Returns the wire with a peer that is known to speak `version`: every frame states at least that. A version that
    /// this build does not speak becomes the nearest one that it does.
    #[must_use]
    pub fn speaking(self, version: u8) -> Self {
        Self { oldest: version.clamp(self.oldest, self.version), ..self }
    }

    /// Reads a header, refusing lengths above `message_cap` (messages) or [`MAX_STREAM_BODY`] (streams).
    ///
    /// # Errors
    /// Every [`FrameError`] of a header. The next frame cannot be found after an error.
    pub fn parse_header(&self, bytes: &[u8; HEADER_LEN], message_cap: usize) -> Result<FrameHeader, FrameError> {
        let [m0, m1, version, kind, l0, l1, l2, l3] = *bytes;
        if [m0, m1] != self.magic {
            return Err(FrameError::Magic { found: [m0, m1], expected: self.magic });
        }
        if version < self.oldest || version > self.version {
            return Err(FrameError::Version { found: version, oldest: self.oldest, newest: self.version });
        }
        let kind = FrameKind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let cap = if kind == FrameKind::Message { message_cap } else { MAX_STREAM_BODY };
        if len > cap {
            return Err(FrameError::TooLong { kind, len, cap });
        }
        Ok(FrameHeader { version, kind, len })
    }

    /// Returns the header for a stream frame of `len` bytes.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when `len` does not fit the length field.
    pub fn header(&self, kind: FrameKind, len: usize) -> Result<[u8; HEADER_LEN], FrameError> {
        self.header_since(self.oldest, kind, len)
    }

    fn header_since(&self, since: u8, kind: FrameKind, len: usize) -> Result<[u8; HEADER_LEN], FrameError> {
        let n = u32::try_from(len).map_err(|_| FrameError::TooLong { kind, len, cap: u32::MAX as usize })?;
        let [l0, l1, l2, l3] = n.to_le_bytes();
        Ok([self.magic[0], self.magic[1], since, kind as u8, l0, l1, l2, l3])
    }

    /// Appends `message` to `out` as one frame. On an error `out` is unchanged.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] above `cap`, [`FrameError::Encode`] when serde refuses the value.
    pub fn append_message<T: Message>(&self, out: &mut Vec<u8>, message: &T, cap: usize) -> Result<(), FrameError> {
        let body = postcard::to_stdvec(message).map_err(FrameError::Encode)?;
        if body.len() > cap {
            return Err(FrameError::TooLong { kind: FrameKind::Message, len: body.len(), cap });
        }
        let since = message.since().max(self.oldest);
        out.extend_from_slice(&self.header_since(since, FrameKind::Message, body.len())?);
        out.extend_from_slice(&body);
        Ok(())
    }

    /// Decodes all of `body` as one message.
    ///
    /// # Errors
    /// [`FrameError::Body`] or [`FrameError::Trailing`].
    pub fn decode_message<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, FrameError> {
        let (value, rest) = postcard::take_from_bytes(body).map_err(FrameError::Body)?;
        if rest.is_empty() { Ok(value) } else { Err(FrameError::Trailing(rest.len())) }
    }
}

/// Splits a byte stream into frames without I/O: push the bytes that arrived, then take frames
/// until `None`.
///
/// After an error the next frame cannot be found, so every later call returns the same error.
#[derive(Debug)]
pub struct FrameDecoder {
    wire: Wire,
    message_cap: usize,
    buffer: Vec<u8>,
    consumed: usize,
    failed: Option<FrameError>,
}

/// One frame. The decoder owns its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Version that the sender stated.
    pub version: u8,
    /// What the body is.
    pub kind: FrameKind,
    /// The body.
    pub body: &'a [u8],
}

impl FrameDecoder {
    /// Returns a decoder for `wire` that refuses messages above `message_cap` bytes.
    #[must_use]
    pub fn new(wire: Wire, message_cap: usize) -> Self {
        Self { wire, message_cap, buffer: Vec::new(), consumed: 0, failed: None }
    }

    /// Adds bytes of the transport. Callers push at most one read buffer before they take all
    /// frames, which limits the memory to one frame and one read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns true if there is no partial frame. Only then an end of stream does not truncate it.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.consumed == self.buffer.len()
    }

    /// Returns the bytes that were pushed and not taken as frames, for a stream that stops using
    /// frames.
    #[must_use]
    pub fn into_rest(mut self) -> Vec<u8> {
        self.buffer.drain(..self.consumed);
        self.buffer
    }

    /// Returns the next complete frame, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// The first [`FrameError`] of the stream, in every later call too.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Some(header) = self.buffer[self.consumed..].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = match self.wire.parse_header(header, self.message_cap) {
            Ok(header) => header,
            Err(error) => {
                self.failed = Some(error.clone());
                return Err(error);
            }
        };
        let start = self.consumed + HEADER_LEN;
        let end = start + header.len;
        if self.buffer.len() < end {
            return Ok(None);
        }
        self.consumed = end;
        Ok(Some(Frame { version: header.version, kind: header.kind, body: &self.buffer[start..end] }))
    }
}
