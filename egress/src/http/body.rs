//! The length of a request's body (RFC 9112, 6 and 7), held to the letter.

/// Longest line of chunked framing in bytes.
const MAX_LINE: usize = 256;

/// Maximum number of bytes behind the last chunk.
const MAX_TRAILERS: usize = 16 * 1024;

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// This many bytes are left.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
}

/// What of a chunked body comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// The line with a chunk's size.
    Size,
    /// This many bytes of a chunk's data.
    Data(u64),
    /// The line end behind the data.
    End,
    /// A line behind the last chunk; so many bytes of them were read.
    Trailer(usize),
}

/// What comes of some bytes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// This many bytes belong to the body, and it is not complete.
    Some(usize),
    /// This many bytes belong to the body, and with them it is complete.
    Last(usize),
    /// More are needed.
    More,
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the framing of the request's body is ambiguous")]
pub struct Ambiguous;

impl Body {
    /// Returns the body that the fields of a head announce; nothing if there is none.
    ///
    /// # Errors
    /// When they announce two, or one that servers read differently.
    pub fn announced<'h>(
        is_old: bool,
        fields: impl Iterator<Item = (&'h [u8], &'h [u8])>,
    ) -> Result<Option<Self>, Ambiguous> {
        let mut announced = None;
        for (name, value) in fields {
            let body = if name.eq_ignore_ascii_case(b"content-length") {
                Self::Length(decimal(value).ok_or(Ambiguous)?)
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if is_old || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Ambiguous);
                }
                Self::Chunked(Chunks::Size)
            } else {
                continue;
            };
            if announced.replace(body).is_some() {
                return Err(Ambiguous);
            }
        }
        Ok(announced.filter(|body| *body != Self::Length(0)))
    }

    /// Reads the next part of the body from `input`.
    ///
    /// # Errors
    /// When its framing is not what a client sends.
    pub fn next(&mut self, input: &[u8]) -> Result<Part, Ambiguous> {
        match self {
            Self::Length(left) => {
                let count = within(*left, input.len());
                *left -= count as u64;
                Ok(match (*left, count) {
                    (0, _) => Part::Last(count),
                    (_, 0) => Part::More,
                    _ => Part::Some(count),
                })
            }
            Self::Chunked(chunks) => chunks.next(input),
        }
    }
}

impl Chunks {
    fn next(&mut self, input: &[u8]) -> Result<Part, Ambiguous> {
        if input.is_empty() {
            return Ok(Part::More);
        }
        match *self {
            Self::Data(left) => {
                let count = within(left, input.len());
                let left = left - count as u64;
                *self = if left == 0 { Self::End } else { Self::Data(left) };
                Ok(Part::Some(count))
            }
            Self::Size => {
                let Some(line) = line(input, MAX_LINE)? else { return Ok(Part::More) };
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
                *self = match hexadecimal(size).ok_or(Ambiguous)? {
                    0 => Self::Trailer(0),
                    size => Self::Data(size),
                };
                Ok(Part::Some(line.len() + 2))
            }
            Self::End => {
                let Some(line) = line(input, 0)? else { return Ok(Part::More) };
                *self = Self::Size;
                Ok(Part::Some(line.len() + 2))
            }
            Self::Trailer(read) => {
                let Some(line) = line(input, MAX_TRAILERS.saturating_sub(read))? else { return Ok(Part::More) };
                let count = line.len() + 2;
                *self = Self::Trailer(read + count);
                Ok(if line.is_empty() { Part::Last(count) } else { Part::Some(count) })
            }
        }
    }
}

/// The line at the beginning of `input`, without its end; nothing if it has none yet.
fn line(input: &[u8], max: usize) -> Result<Option<&[u8]>, Ambiguous> {
    let window = &input[..input.len().min(max + 2)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() < max + 2 { Ok(None) } else { Err(Ambiguous) };
    };
    // A line feed alone ends a line for lenient servers only.
    let line = window[..end].strip_suffix(b"\r").ok_or(Ambiguous)?;
    let is_plain = line.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..));
    if is_plain { Ok(Some(line)) } else { Err(Ambiguous) }
}

fn within(left: u64, available: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// A size has no sign, no prefix and no space around it, and fits a number of 60 bits.
fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if !(1..=15).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| Some(number * 16 + u64::from(char::from(*digit).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &mut Body, mut input: &[u8], piece: usize) -> Result<(bool, usize), Ambiguous> {
        let (mut total, mut shown) = (0, piece.min(input.len()));
        loop {
            match body.next(&input[..shown])? {
                Part::More if shown == input.len() => return Ok((false, total)),
                Part::More => shown = (shown + piece).min(input.len()),
                Part::Some(count) => {
                    (input, total) = (&input[count..], total + count);
                    shown = piece.min(input.len());
                }
                Part::Last(count) => return Ok((true, total + count)),
            }
        }
    }

    #[test]
    fn bodies_end_where_servers_see_their_end() {
        let chunked = b"5;name=\"v\"\r\nhello\r\n0a\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
        for piece in 1..=chunked.len() {
            let input = [&chunked[..], b"GET"].concat();
            assert_eq!(read(&mut Body::Chunked(Chunks::Size), &input, piece), Ok((true, chunked.len())));
            assert_eq!(read(&mut Body::Length(5), b"helloGET", piece), Ok((true, 5)));
        }
    }

    #[test]
    fn chunks_that_servers_read_differently_are_refused() {
        for body in [
            &b"5\nhello\r\n"[..],
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"\r\n",
            b"fffffffffffffffff\r\n",
            b"5;\0\r\nhello\r\n",
            b"5;\rx\r\nhello\r\n",
            b"0\r\nX: y\n\r\n",
        ] {
            for piece in [1, body.len()] {
                let result = read(&mut Body::Chunked(Chunks::Size), body, piece);
                assert_eq!(result, Err(Ambiguous), "{:?}", String::from_utf8_lossy(body));
            }
        }
        let long = [b"5;".to_vec(), vec![b'a'; MAX_LINE]].concat();
        assert_eq!(read(&mut Body::Chunked(Chunks::Size), &long, 1), Err(Ambiguous));
    }

    #[test]
    fn announcements_that_servers_read_differently_are_refused() {
        let announced = |is_old: bool, fields: &[(&str, &str)]| {
            Body::announced(is_old, fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
        };
        assert_eq!(announced(false, &[("Accept", "x")]), Ok(None));
        assert_eq!(announced(false, &[("content-LENGTH", "0")]), Ok(None));
        assert_eq!(announced(true, &[("Content-Length", "12")]), Ok(Some(Body::Length(12))));
        assert_eq!(announced(false, &[("Transfer-Encoding", "Chunked")]), Ok(Some(Body::Chunked(Chunks::Size))));
        for fields in [
            &[("Content-Length", "5"), ("Content-Length", "5")][..],
            &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
            &[("Content-Length", "5, 5")],
            &[("Content-Length", "+5")],
            &[("Content-Length", "")],
            &[("Content-Length", "9999999999999999999")],
            &[("Transfer-Encoding", "gzip, chunked")],
            &[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")],
            &[("Transfer-Encoding", "xchunked")],
        ] {
            assert_eq!(announced(false, fields), Err(Ambiguous), "{fields:?}");
        }
        assert_eq!(announced(true, &[("Transfer-Encoding", "chunked")]), Err(Ambiguous));
    }
}
