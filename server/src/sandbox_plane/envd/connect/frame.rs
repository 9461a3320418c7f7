//! Frames of Connect's streams: a byte of flags, a big-endian length, that many bytes. The last of a server's says how the
//! stream ended.

use super::{
    ConnectError,
    body::{MAX_MESSAGE, gunzip},
    error::Code,
};
use axum::body::{Body, BodyDataStream};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use serde::{Serialize, de::DeserializeOwned};

const HEADER: usize = 5;
const COMPRESSED: u8 = 0x01;
const END: u8 = 0x02;

/// A message to a client.
pub(super) fn message(message: &impl Serialize) -> Result<Bytes, ConnectError> {
    frame(0, message)
}

/// The end of a stream to a client.
pub(super) fn end(error: Option<&ConnectError>) -> Bytes {
    #[derive(Serialize)]
    struct End<'e> {
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'e ConnectError>,
    }
    frame(END, &End { error }).unwrap_or_else(|_| Bytes::from_static(&[END, 0, 0, 0, 2, b'{', b'}']))
}

fn frame(flags: u8, message: &impl Serialize) -> Result<Bytes, ConnectError> {
    let failed = |what: String| ConnectError::new(Code::Internal, what);
    let mut writer = BytesMut::with_capacity(128).writer();
    writer.get_mut().put_bytes(0, HEADER);
    serde_json::to_writer(&mut writer, message).map_err(|error| failed(error.to_string()))?;
    let mut frame = writer.into_inner();
    let length = u32::try_from(frame.len() - HEADER).map_err(|_| failed("a message of more than 4 GiB".into()))?;
    frame[0] = flags;
    frame[1..HEADER].copy_from_slice(&length.to_be_bytes());
    Ok(frame.freeze())
}

/// Messages of a client, one by one; holds one of them and what came with it.
pub(super) struct Frames {
    body: BodyDataStream,
    buffer: BytesMut,
    is_gzip: bool,
}

impl Frames {
    /// With `is_gzip`, frames that say so are decompressed.
    pub(super) fn of(body: Body, is_gzip: bool) -> Self {
        Self { body: body.into_data_stream(), buffer: BytesMut::new(), is_gzip }
    }

    /// The next message; `None` when the client has sent all.
    pub(super) async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, ConnectError> {
        let Some((flags, bytes)) = self.next_frame().await? else { return Ok(None) };
        let bytes = match flags {
            0 => bytes,
            COMPRESSED if self.is_gzip => gunzip(&bytes, MAX_MESSAGE)?.into(),
            COMPRESSED => {
                return Err(ConnectError::invalid(
                    "invalid frame: a compressed message in a stream without compression",
                ));
            }
            flags => return Err(ConnectError::invalid(format!("invalid frame flags {flags:#04x}"))),
        };
        super::body::parse(&bytes).map(Some)
    }

    async fn next_frame(&mut self) -> Result<Option<(u8, Bytes)>, ConnectError> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<HEADER>() {
                let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
                if length > MAX_MESSAGE {
                    let message = format!("a message of {length} bytes exceeds the limit of {MAX_MESSAGE}");
                    return Err(ConnectError::new(Code::ResourceExhausted, message));
                }
                if self.buffer.len() >= HEADER + length {
                    let flags = header[0];
                    self.buffer.advance(HEADER);
                    return Ok(Some((flags, self.buffer.split_to(length).freeze())));
                }
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(ConnectError::invalid(format!("the request broke off: {error}"))),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ConnectError::invalid("the request ends within a frame")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use serde_json::{Value, json};

    fn frames(chunks: Vec<Vec<u8>>, is_gzip: bool) -> Frames {
        let chunks = chunks.into_iter().map(Ok::<_, std::io::Error>);
        Frames::of(Body::from_stream(stream::iter(chunks)), is_gzip)
    }

    async fn all(frames: &mut Frames) -> Result<Vec<Value>, ConnectError> {
        let mut all = Vec::new();
        while let Some(message) = frames.next().await? {
            all.push(message);
        }
        Ok(all)
    }

    #[test]
    fn what_a_server_sends_is_framed() {
        assert_eq!(&message(&json!({"a": 1})).unwrap()[..], b"\x00\x00\x00\x00\x07{\"a\":1}");
        assert_eq!(&end(None)[..], b"\x02\x00\x00\x00\x02{}");
        let text = r#"{"error":{"code":"not_found","message":"no"}}"#;
        let frame = end(Some(&ConnectError::new(Code::NotFound, "no")));
        assert_eq!((frame[0], frame[4] as usize, &frame[HEADER..]), (2, text.len(), text.as_bytes()));
    }

    #[tokio::test]
    async fn messages_are_found_however_they_are_cut() {
        let bytes = [&message(&json!({"a": 1})).unwrap()[..], &message(&json!({})).unwrap()[..]].concat();
        for size in [1, 2, 5, 7, bytes.len()] {
            let mut frames = frames(bytes.chunks(size).map(<[u8]>::to_vec).collect(), false);
            assert_eq!(all(&mut frames).await.unwrap(), [json!({"a": 1}), json!({})], "pieces of {size}");
        }
    }

    #[tokio::test]
    async fn compressed_messages_are_taken_where_they_were_announced() {
        use flate2::{Compression, write::GzEncoder};
        use std::io::Write;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"{\"a\":2}").unwrap();
        let body = encoder.finish().unwrap();
        let frame = [&[COMPRESSED, 0, 0, 0, body.len() as u8][..], &body].concat();
        assert_eq!(all(&mut frames(vec![frame.clone()], true)).await.unwrap(), [json!({"a": 2})]);
        assert_eq!(all(&mut frames(vec![frame], false)).await.unwrap_err().code, Code::InvalidArgument);
    }

    #[tokio::test]
    async fn nonsense_is_refused_before_memory_is_taken_for_it() {
        for (bytes, code) in [
            (vec![0, 0xff, 0xff, 0xff, 0xff], Code::ResourceExhausted),
            (vec![0, 0, 0, 0, 9, b'{'], Code::InvalidArgument),
            (vec![0, 0, 0], Code::InvalidArgument),
            (vec![0, 0, 0, 0, 1, b'{'], Code::InvalidArgument),
            (vec![2, 0, 0, 0, 2, b'{', b'}'], Code::InvalidArgument),
            (vec![0x80, 0, 0, 0, 2, b'{', b'}'], Code::InvalidArgument),
            (vec![1, 0, 0, 0, 2, b'{', b'}'], Code::InvalidArgument),
        ] {
            assert_eq!(all(&mut frames(vec![bytes.clone()], true)).await.unwrap_err().code, code, "{bytes:?}");
        }
    }
}
