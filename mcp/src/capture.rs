//! Keeps the beginning and the end of the output of a guest, as valid text that says what is missing. Memory use is bounded,
//! whatever a guest writes. Called by the tools.

use sandboxvm_manager::is_printable;
use std::collections::VecDeque;

/// Maximum number of bytes of the beginning, and of the end.
pub(crate) const KEPT: usize = 64 * 1024;

/// Receives output.
#[derive(Debug)]
pub(crate) struct Capture {
    each: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Capture {
    /// Returns a capture that keeps `each` bytes of the beginning and of the end.
    pub(crate) fn new(each: usize) -> Self {
        Self { each, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (to_head, rest) = bytes.split_at(bytes.len().min(self.each - self.head.len()));
        self.head.extend_from_slice(to_head);
        let rest = &rest[rest.len().saturating_sub(self.each)..];
        let too_many = (self.tail.len() + rest.len()).saturating_sub(self.each);
        self.tail.drain(..too_many);
        self.tail.extend(rest);
    }

    /// Returns the number of all bytes that were written.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Returns the number of bytes that are missing in [`Self::text`].
    pub(crate) fn cut(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }

    /// Returns the text, with a line in place of the bytes that were cut.
    pub(crate) fn text(self) -> String {
        let cut = self.cut();
        let tail: Vec<u8> = self.tail.into();
        if cut == 0 {
            return shown(&[self.head, tail].concat());
        }
        format!("{}\n[... {cut} bytes cut here ...]\n{}", shown(before_cut(&self.head)), shown(after_cut(&tail)))
    }
}

/// Returns valid UTF-8 without terminal sequences.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // Progress bars use carriage returns, which are harmless.
        if is_printable(c) || c == '\r' { safe.push(c) } else { safe.extend(c.escape_default()) }
    }
    safe
}

/// Returns `text`, cut to `most` bytes, for messages.
pub(crate) fn bounded(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" [... cut]");
    }
    text
}

/// Returns `bytes` without an incomplete character at the end.
pub(crate) fn before_cut(bytes: &[u8]) -> &[u8] {
    let begun = bytes.iter().rev().take(4).position(|byte| !is_continuation(*byte));
    match begun.map(|back| bytes.len() - 1 - back) {
        Some(start) if length_of(bytes[start]) > bytes.len() - start => &bytes[..start],
        _ => bytes,
    }
}

/// Returns `bytes` without an incomplete character at the beginning.
fn after_cut(bytes: &[u8]) -> &[u8] {
    let skipped = bytes.iter().take(3).take_while(|byte| is_continuation(**byte)).count();
    &bytes[skipped..]
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Returns the length of the character that starts with this byte.
fn length_of(first: u8) -> usize {
    match first {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(each: usize, chunks: &[&[u8]]) -> Capture {
        let mut capture = Capture::new(each);
        chunks.iter().for_each(|chunk| capture.take(chunk));
        capture
    }

    #[test]
    fn what_fits_is_whole_however_it_came() {
        for chunks in [&[b"abcdefgh".as_slice()][..], &[b"abc", b"", b"defg", b"h"], &[b"abcde", b"fgh"]] {
            let capture = captured(4, chunks);
            assert_eq!((capture.total(), capture.cut()), (8, 0));
            assert_eq!(capture.text(), "abcdefgh");
        }
    }

    #[test]
    fn the_beginning_and_the_end_are_kept_and_the_rest_is_counted() {
        for chunks in [&[b"abcdefghij".as_slice()][..], &[b"abcde", b"fghij"], &[b"a", b"bcdefghi", b"j"]] {
            let capture = captured(3, chunks);
            assert_eq!(capture.cut(), 4);
            assert_eq!(capture.text(), "abc\n[... 4 bytes cut here ...]\nhij");
        }
    }

    #[test]
    fn memory_does_not_grow_with_what_is_written() {
        let mut capture = Capture::new(KEPT);
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..1000 {
            capture.take(&chunk);
        }
        assert!(capture.head.len() == KEPT && capture.tail.len() == KEPT && capture.tail.capacity() <= 4 * KEPT);
        assert_eq!(capture.cut(), 998 * 64 * 1024);
    }

    #[test]
    fn no_character_is_cut_in_two() {
        for each in 1..12 {
            let text = captured(each, &["äö€𝄞äö€𝄞äö€𝄞".as_bytes()]).text();
            assert!(!text.contains('\u{fffd}'), "{each}: {text:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_made_text() {
        assert_eq!(shown(b"a\xff\x1b[2Jb\r\n\tc\0"), "a\u{fffd}\\u{1b}[2Jb\r\n\tc\\u{0}");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(bounded("aä".repeat(10), 5), "aäa [... cut]");
        assert_eq!(bounded("short".into(), 5), "short");
    }
}
