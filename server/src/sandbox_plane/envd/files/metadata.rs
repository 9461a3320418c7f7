//! Metadata that a client gives a file: a header `X-Metadata-KEY: VALUE` for each pair. Limits and errors are E2B's.

use super::error::FilesError;
use axum::http::{HeaderMap, StatusCode};
use sandboxvm_manager::FileMetadata;

const PREFIX: &str = "x-metadata-";

/// The pairs of a request. Of a header that comes more than once, the first counts.
pub(super) fn of(headers: &HeaderMap) -> Result<FileMetadata, FilesError> {
    let invalid = |problem: String| FilesError::new(StatusCode::BAD_REQUEST, format!("invalid metadata: {problem}"));
    let mut metadata = FileMetadata::default();
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(PREFIX).filter(|key| !key.is_empty()) else { continue };
        let value = headers.get(name).map(|value| value.as_bytes()).unwrap_or_default();
        if let Some((at, byte)) = value.iter().enumerate().find(|(_, byte)| !matches!(byte, 0x20..=0x7e)) {
            return Err(invalid(format!(
                "metadata value for key {key:?} contains non-printable-ASCII byte {byte:#04x} at offset {at}"
            )));
        }
        let value = String::from_utf8_lossy(value).into_owned();
        metadata.insert(key.to_owned(), value).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};
    use sandboxvm_manager::MAX_METADATA;

    fn read(pairs: &[(&str, &[u8])]) -> Result<Vec<(String, String)>, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        let metadata = of(&headers).map_err(|error| error.to_string())?;
        Ok(metadata.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn headers_are_pairs() {
        let given: [(&str, &[u8]); 5] = [
            ("X-Metadata-Author", b"me"),
            ("x-metadata-author", b"another"),
            ("x-metadata-", b"x"),
            ("x-meta", b"x"),
            ("x-metadata-b", b""),
        ];
        let mut pairs = read(&given).unwrap();
        pairs.sort();
        assert_eq!(pairs, [("author".into(), "me".into()), ("b".into(), String::new())]);
    }

    #[test]
    fn what_no_file_can_have_is_refused_in_the_words_of_e2b() {
        let message = read(&[("x-metadata-k", "ü".as_bytes())]).unwrap_err();
        assert_eq!(
            message,
            "invalid metadata: metadata value for key \"k\" contains non-printable-ASCII byte 0xc3 at offset 0"
        );
        let message = read(&[(&format!("x-metadata-{}", "k".repeat(247)), b"")]).unwrap_err();
        assert!(message.contains("exceeds 246 bytes"), "{message}");
        let message = read(&[("x-metadata-k", &vec![b'x'; MAX_METADATA])]).unwrap_err();
        assert_eq!(message, "invalid metadata: total metadata size 4106 exceeds 4096 bytes");
    }
}
