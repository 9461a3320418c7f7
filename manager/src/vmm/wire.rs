//! Frames over a tokio stream: the only place where the framing of both wires meets I/O. A reader
//! may hold at most one frame and one read; the protocol crate limits the content of a frame.

use sandboxvm_protocol::frame::{FrameDecoder, FrameError, FrameKind, MAX_STREAM_BODY, Message, Wire};
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The peer closed the connection inside a frame.
    #[error("the connection was closed in the middle of a frame")]
    CutShort,
    /// The peer broke the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent a message that is not expected here.
    #[error("unexpected {0}")]
    Unexpected(&'static str),
    /// The transport failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl WireError {
    /// Returns true if the peer closed the connection, and false if it broke the protocol.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match self {
            Self::Closed | Self::CutShort => true,
            Self::Io(error) => matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted),
            Self::Frame(_) | Self::Unexpected(_) => false,
        }
    }
}

/// A frame that owns its body.
#[derive(Debug)]
pub(crate) struct OwnedFrame {
    pub(crate) kind: FrameKind,
    pub(crate) body: Vec<u8>,
}

/// Reads frames from a stream.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    wire: Wire,
    decoder: FrameDecoder,
    buffer: Box<[u8]>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, wire: Wire, message_cap: usize) -> Self {
        let buffer = vec![0; MAX_STREAM_BODY].into_boxed_slice();
        Self { stream, wire, decoder: FrameDecoder::new(wire, message_cap), buffer }
    }

    /// Like [`Self::new`], for a stream of which another process has read these bytes.
    pub(crate) fn resumed(stream: R, wire: Wire, message_cap: usize, early: &[u8]) -> Self {
        let mut reader = Self::new(stream, wire, message_cap);
        reader.decoder.push(early);
        reader
    }

    /// Returns the stream, and the bytes that were read beyond the last frame: for a stream that
    /// carries no more frames.
    pub(crate) fn into_parts(self) -> (R, Vec<u8>) {
        (self.stream, self.decoder.into_rest())
    }

    /// Returns the next frame. Cancel safe: a cancelled call loses no frame.
    pub(crate) async fn next(&mut self) -> Result<OwnedFrame, WireError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(OwnedFrame { kind: frame.kind, body: frame.body.to_vec() });
            }
            match self.stream.read(&mut self.buffer).await? {
                0 if self.decoder.is_at_boundary() => return Err(WireError::Closed),
                0 => return Err(WireError::CutShort),
                n => self.decoder.push(&self.buffer[..n]),
            }
        }
    }

    /// Returns the next frame, which must be a message. Cancel safe.
    pub(crate) async fn next_message<T: DeserializeOwned>(&mut self) -> Result<T, WireError> {
        let frame = self.next().await?;
        if frame.kind != FrameKind::Message {
            return Err(WireError::Unexpected("stream data"));
        }
        Ok(self.wire.decode_message(&frame.body)?)
    }
}

/// Writes `message` as one frame. Not cancel safe.
pub(crate) async fn send<W: AsyncWrite + Unpin, T: Message>(
    stream: &mut W,
    wire: Wire,
    message: &T,
    cap: usize,
) -> Result<(), WireError> {
    let mut bytes = Vec::new();
    wire.append_message(&mut bytes, message, cap)?;
    Ok(stream.write_all(&bytes).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::{agent, agent::HostMessage};

    #[tokio::test]
    async fn messages_arrive_one_by_one_and_a_truncated_frame_is_detected() {
        let (mut a, b) = tokio::io::duplex(7);
        let mut reader = FrameReader::new(b, agent::WIRE, agent::MAX_HOST_MESSAGE);
        let writer = tokio::spawn(async move {
            for message in [HostMessage::Ping, HostMessage::StdinEof] {
                send(&mut a, agent::WIRE, &message, agent::MAX_HOST_MESSAGE).await.unwrap();
            }
            a.write_all(&[b'S', b'A', 1]).await.unwrap();
        });
        assert_eq!(reader.next_message::<HostMessage>().await.unwrap(), HostMessage::Ping);
        assert_eq!(reader.next_message::<HostMessage>().await.unwrap(), HostMessage::StdinEof);
        assert!(matches!(reader.next().await, Err(WireError::CutShort)));
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn stream_data_is_not_a_message() {
        let (mut a, b) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(b, agent::WIRE, 64);
        a.write_all(&agent::WIRE.header(FrameKind::Stdout, 0).unwrap()).await.unwrap();
        assert!(matches!(reader.next_message::<HostMessage>().await, Err(WireError::Unexpected(_))));
        drop(a);
        assert!(matches!(reader.next().await, Err(WireError::Closed)));
    }
}
