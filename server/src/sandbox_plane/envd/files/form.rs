//! Forms with files (multipart/form-data, RFC 7578), read as they arrive: the memory held is one piece of the request, and the
//! bytes that may be the beginning of a boundary. The headers of a part are capped at [`MAX_HEADERS`].
//!
//! The crate `multer`, which axum uses, is not used here because neither can be bounded with it: its buffer takes whatever
//! the connection has ready before a part is parsed, and it waits for the end of a part's headers without a maximum. Its
//! only limits are on the body as a whole and on a part's content, and uploads have no such limits.

use super::error::FilesError;
use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use memchr::memmem::Finder;

/// RFC 2046, section 5.1.1.
const MAX_BOUNDARY: usize = 70;
/// All headers of a part: a path of 4 KiB, escaped, and more.
const MAX_HEADERS: usize = 32 << 10;
const LINE_END: &[u8] = b"\r\n";
const HEADERS_END: &[u8] = b"\r\n\r\n";

pub(super) struct Form {
    body: BodyDataStream,
    buffer: BytesMut,
    /// Line end, two dashes, boundary.
    delimiter: Finder<'static>,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Before the first part, or within one.
    Content,
    /// Right behind a delimiter.
    Delimiter,
    End,
}

/// What a part says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: Option<String>,
    pub(super) file_name: Option<String>,
}

impl Form {
    pub(super) fn of(headers: &HeaderMap, body: Body) -> Result<Self, FilesError> {
        let stated = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = parameter(stated, "boundary").unwrap_or_default();
        if boundary.is_empty() || boundary.len() > MAX_BOUNDARY {
            return Err(bad("the form's type states no boundary of 1 to 70 characters"));
        }
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        // The first delimiter has no line before it that it could end.
        Ok(Self {
            body: body.into_data_stream(),
            buffer: LINE_END.into(),
            delimiter: Finder::new(&delimiter).into_owned(),
            state: State::Content,
        })
    }

    /// The next part; what is left of the one before is skipped. `None` when that was all.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, FilesError> {
        while self.chunk().await?.is_some() {}
        if self.state == State::End {
            return Ok(None);
        }
        self.fill(2).await?;
        if self.buffer.starts_with(b"--") {
            self.state = State::End;
            return Ok(None);
        }
        // The line's end may be that of the headers too, when there are none.
        let end = loop {
            match memchr::memmem::find(&self.buffer, HEADERS_END) {
                Some(end) => break end,
                None if self.buffer.len() > MAX_HEADERS => return Err(bad("the headers of a part are too long")),
                None => self.fill(self.buffer.len() + 1).await?,
            }
        };
        let headers = self.buffer.split_to(end + HEADERS_END.len());
        self.state = State::Content;
        // A delimiter may follow at once, and begins with the end of a line.
        let is_padding = |byte: &u8| matches!(byte, b' ' | b'\t');
        let line = headers.iter().position(|byte| !is_padding(byte)).unwrap_or_default();
        if !headers[line..].starts_with(LINE_END) {
            return Err(bad("something follows a boundary on its line"));
        }
        Ok(Some(Part::of(&String::from_utf8_lossy(&headers[line..]))))
    }

    /// Some of the part's content; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, FilesError> {
        if self.state != State::Content {
            return Ok(None);
        }
        loop {
            if let Some(at) = self.delimiter.find(&self.buffer) {
                if at > 0 {
                    return Ok(Some(self.buffer.split_to(at).freeze()));
                }
                self.buffer.advance(self.delimiter.needle().len());
                self.state = State::Delimiter;
                return Ok(None);
            }
            let sure = (self.buffer.len() + 1).saturating_sub(self.delimiter.needle().len());
            if sure > 0 {
                return Ok(Some(self.buffer.split_to(sure).freeze()));
            }
            self.fill(self.buffer.len() + 1).await?;
        }
    }

    /// Has at least so many bytes there.
    async fn fill(&mut self, least: usize) -> Result<(), FilesError> {
        while self.buffer.len() < least {
            match self.body.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(bad(format!("the request broke off: {error}"))),
                None => return Err(bad("the form ends before its last boundary")),
            }
        }
        Ok(())
    }
}

impl Part {
    fn of(headers: &str) -> Self {
        let lines = headers.split("\r\n").filter_map(|line| line.split_once(':'));
        let mut dispositions = lines.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"));
        let Some((_, disposition)) = dispositions.next() else { return Self::default() };
        let text = |name| parameter(disposition, name).map(|text| unescape(&text));
        Self { name: text("name"), file_name: text("filename") }
    }
}

/// Of `type; name=value; name="value"`, a value. In quotes, a backslash before a quote or another backslash escapes it.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (mut value, mut left) = (String::new(), after.trim_start());
        if let Some(quoted) = left.strip_prefix('"') {
            let mut letters = quoted.char_indices().peekable();
            left = loop {
                match letters.next()? {
                    (at, '"') => break &quoted[at + 1..],
                    (_, '\\') if letters.peek().is_some_and(|(_, next)| matches!(next, '"' | '\\')) => {
                        value.extend(letters.next().map(|(_, letter)| letter));
                    }
                    (_, letter) => value.push(letter),
                }
            };
        } else {
            let end = left.find(';').unwrap_or(left.len());
            left[..end].trim_end().clone_into(&mut value);
            left = &left[end..];
        }
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = left.trim_start().strip_prefix(';')?;
    }
}

/// As browsers escape: quotes and line ends alone; a percent sign stays as it is.
fn unescape(text: &str) -> String {
    text.replace("%22", "\"").replace("%0D", "\r").replace("%0A", "\n")
}

fn bad(message: impl Into<String>) -> FilesError {
    FilesError::new(StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use futures_util::stream;
    use std::io;

    type Parts = Vec<(Part, Vec<u8>)>;

    async fn read(pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Result<Parts, FilesError> {
        let value = HeaderValue::from_static("multipart/form-data; charset=x; boundary=\"B\"");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, value)]);
        let mut form = Form::of(&headers, Body::from_stream(stream::iter(pieces.map(Ok::<_, io::Error>))))?;
        let mut parts = Vec::new();
        while let Some(part) = form.next().await? {
            let mut content = Vec::new();
            while let Some(chunk) = form.chunk().await? {
                assert!(!chunk.is_empty());
                content.extend_from_slice(&chunk);
            }
            parts.push((part, content));
        }
        Ok(parts)
    }

    fn part(name: &str, file_name: &str) -> Part {
        Part { name: Some(name.into()), file_name: Some(file_name.into()) }
    }

    #[tokio::test]
    async fn parts_are_found_however_the_form_is_cut() {
        let form = b"preamble\r\n--B \r\nContent-Disposition: form-data; name=\"file\"; filename=\"/a%22b\\\\;=%25\"\r\n\
            Content-Type: text/plain\r\n\r\none\r\n--\r\n-B\r\n\r\n--B\r\ncontent-disposition: form-data; filename=x; name=file\
            \r\n\r\n\r\n--B\r\n\r\nnameless\r\n--B--\r\nepilogue";
        for size in [1, 2, 3, 7, form.len()] {
            let pieces: Vec<_> = form.chunks(size).map(<[u8]>::to_vec).collect();
            let expected = [
                (part("file", "/a\"b\\;=%25"), b"one\r\n--\r\n-B\r\n".to_vec()),
                (part("file", "x"), Vec::new()),
                (Part::default(), b"nameless".to_vec()),
            ];
            assert_eq!(read(pieces.into_iter()).await.unwrap(), expected, "pieces of {size}");
        }
        assert_eq!(read([b"--B--".to_vec()].into_iter()).await.unwrap(), []);
    }

    #[tokio::test]
    async fn unread_content_of_a_part_is_skipped() {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("a/b;boundary=B"))]);
        let body = "--B\r\nA: b\r\n\r\nlong\r\n--B\r\nContent-Disposition: x; name=b\r\n\r\n\r\n--B--";
        let mut form = Form::of(&headers, body.into()).unwrap();
        assert_eq!(form.next().await.unwrap(), Some(Part::default()));
        assert_eq!(form.next().await.unwrap().unwrap().name.as_deref(), Some("b"));
        assert_eq!((form.next().await.unwrap(), form.next().await.unwrap()), (None, None));
    }

    #[tokio::test]
    async fn malformed_forms_are_rejected() {
        for form in
            ["", "x", "--B", "--Bx\r\n\r\n", "--B\r\nA: b\r\n", "--B\r\n\r\nhalf", "--B\r\n\r\nhalf\r\n--", "--B-"]
        {
            assert!(read([form.as_bytes().to_vec()].into_iter()).await.is_err(), "{form:?}");
        }
        let endless = std::iter::once(b"--B\r\nX: ".to_vec()).chain(std::iter::repeat(vec![b'x'; 1 << 10]));
        assert!(read(endless).await.unwrap_err().to_string().contains("too long"));
        for stated in ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"x"] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(stated))]);
            assert!(Form::of(&headers, Body::empty()).is_err(), "{stated}");
        }
    }

    #[test]
    fn header_parameters_are_parsed() {
        let of = |header, name| parameter(header, name);
        assert_eq!(of("form-data; filename=\"name=x; y\"; name=\"b\"", "name").as_deref(), Some("b"));
        assert_eq!(of("form-data; filename=\"a\\b\"", "filename").as_deref(), Some("a\\b"));
        assert_eq!(of("form-data; filename=\"ü\\\"\"; x", "filename").as_deref(), Some("ü\""));
        assert_eq!(of("form-data; name", "name"), None);
        assert_eq!(of("form-data", "name"), None);
    }
}
