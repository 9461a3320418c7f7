//! Whole messages in requests and answers: capped, gzip where it is asked for.

use super::{ConnectError, error::Code};
use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{Read, Write};

/// Largest message of a client, compressed or not.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
/// Answers below this are not worth compressing.
const WORTH_COMPRESSING: usize = 4096;

/// Whether a request's messages are gzip, by the header that says so.
pub(super) fn is_gzip(headers: &HeaderMap, header: &str) -> Result<bool, ConnectError> {
    match headers.get(header).map(HeaderValue::as_bytes) {
        None | Some(b"identity" | b"") => Ok(false),
        Some(b"gzip") => Ok(true),
        Some(_) => {
            Err(ConnectError::new(Code::Unimplemented, format!("{header} is unknown; gzip and identity are known")))
        }
    }
}

/// The message of a unary request.
pub(super) async fn read<M: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<M, ConnectError> {
    let is_gzip = is_gzip(headers, CONTENT_ENCODING.as_str())?;
    let bytes = match Limited::new(body, MAX_MESSAGE).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(too_large(MAX_MESSAGE)),
        Err(error) => return Err(ConnectError::invalid(format!("the request broke off: {error}"))),
    };
    if is_gzip { parse(&gunzip(&bytes, MAX_MESSAGE)?) } else { parse(&bytes) }
}

pub(super) fn parse<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, ConnectError> {
    serde_json::from_slice(bytes).map_err(|error| ConnectError::invalid(format!("invalid JSON message: {error}")))
}

pub(super) fn gunzip(bytes: &[u8], most: usize) -> Result<Vec<u8>, ConnectError> {
    let mut plain = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX);
    GzDecoder::new(bytes)
        .take(limit.saturating_add(1))
        .read_to_end(&mut plain)
        .map_err(|error| ConnectError::invalid(format!("invalid gzip message: {error}")))?;
    if plain.len() > most { Err(too_large(most)) } else { Ok(plain) }
}

fn too_large(most: usize) -> ConnectError {
    ConnectError::new(Code::ResourceExhausted, format!("the message exceeds the limit of {most} bytes"))
}

/// The answer to a unary request.
pub(super) fn answer(accepts: &HeaderMap, message: &impl Serialize) -> Response {
    let bytes = match serde_json::to_vec(message) {
        Ok(bytes) => bytes,
        Err(error) => return ConnectError::new(Code::Internal, error.to_string()).into_response(),
    };
    let json = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if bytes.len() < WORTH_COMPRESSING || !accepts_gzip(accepts) {
        return ([json], bytes).into_response();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(compressed) => ([json, (CONTENT_ENCODING, HeaderValue::from_static("gzip"))], compressed).into_response(),
        Err(_) => ([json], bytes).into_response(),
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|weight| weight.trim_start_matches("q=").parse() == Ok(0.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn a_small_message_that_grows_large_is_refused() {
        let bomb = gzip(&vec![b' '; MAX_MESSAGE + 1]);
        assert!(bomb.len() < 64 << 10);
        let error = read::<Value>(&headers("content-encoding", "gzip"), bomb.into()).await.unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
        let error = read::<Value>(&HeaderMap::new(), vec![b' '; MAX_MESSAGE + 1].into()).await.unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn messages_are_read_as_they_say_they_are_coded() {
        let plain: Value = read(&HeaderMap::new(), "{\"a\":1}".into()).await.unwrap();
        let coded: Value = read(&headers("content-encoding", "gzip"), gzip(b"{\"a\":1}").into()).await.unwrap();
        assert_eq!((&plain, &coded), (&json!({"a": 1}), &json!({"a": 1})));
        for (coding, code) in [("br", Code::Unimplemented), ("gzip", Code::InvalidArgument)] {
            let error = read::<Value>(&headers("content-encoding", coding), "{}".into()).await.unwrap_err();
            assert_eq!(error.code, code);
        }
        assert_eq!(read::<Value>(&HeaderMap::new(), "{".into()).await.unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn gzip_is_sent_to_who_takes_it() {
        for (value, accepts) in
            [("gzip", true), ("deflate, gzip;q=0.5", true), ("gzip;q=0", false), ("identity", false), ("xgzip", false)]
        {
            assert_eq!(accepts_gzip(&headers("accept-encoding", value)), accepts, "{value}");
        }
        let large = answer(&headers("accept-encoding", "gzip"), &"x".repeat(WORTH_COMPRESSING));
        assert_eq!(large.headers()["content-encoding"], "gzip");
        let small = answer(&headers("accept-encoding", "gzip"), &"x");
        assert!(!small.headers().contains_key("content-encoding"));
    }
}
