//! The secrets of a build, and what keeps them out of its output. A secret may not reach a key, an
//! event, an error or a file of the host.

use super::machine::Stream;
use std::{collections::BTreeMap, fmt};

/// What replaces a secret.
const MASK: &[u8] = b"***";
/// Parts of a secret that are shorter are not masked: they occur by chance.
const MIN_PART: usize = 4;
/// Bytes of a line that are kept back while it has no end.
const MAX_LINE: usize = 64 << 10;
/// Lines of output that a failure repeats.
const TAIL_LINES: usize = 20;
/// Bytes of output that a failure repeats.
const TAIL_BYTES: usize = 4 << 10;

/// Secrets by ID.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, Vec<u8>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Secrets {
    /// Adds a secret.
    pub fn insert(&mut self, id: String, value: Vec<u8>) {
        self.0.insert(id, value);
    }

    pub(super) fn get(&self, id: &str) -> Option<&[u8]> {
        self.0.get(id).map(Vec::as_slice)
    }

    /// Returns the parts of all secrets that are masked: their lines, longest first.
    fn parts(&self) -> Vec<Vec<u8>> {
        let lines = self.0.values().flat_map(|secret| secret.split(|byte| *byte == b'\n'));
        let mut parts: Vec<_> =
            lines.map(<[u8]>::trim_ascii).filter(|part| part.len() >= MIN_PART).map(<[u8]>::to_vec).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        parts
    }
}

/// The output of one step, on its way to the user.
pub(crate) struct Output<'a> {
    parts: Vec<Vec<u8>>,
    waiting: [Vec<u8>; 2],
    tail: Vec<u8>,
    pass: &'a mut (dyn FnMut(Stream, &[u8]) + Send),
}

impl<'a> Output<'a> {
    pub(crate) fn new(secrets: &Secrets, pass: &'a mut (dyn FnMut(Stream, &[u8]) + Send)) -> Self {
        Self { parts: secrets.parts(), waiting: [Vec::new(), Vec::new()], tail: Vec::new(), pass }
    }

    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if self.parts.is_empty() {
            return self.emit(stream, bytes);
        }
        // A secret may arrive in two pieces, so only whole lines are passed on.
        let waiting = &mut self.waiting[stream as usize];
        waiting.extend_from_slice(bytes);
        let end = match waiting.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => at + 1,
            None if waiting.len() > MAX_LINE => cut(waiting, &self.parts),
            None => return,
        };
        let lines: Vec<u8> = waiting.drain(..end).collect();
        let masked = mask(&lines, &self.parts);
        self.emit(stream, &masked);
    }

    fn emit(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        self.tail.extend_from_slice(kept);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        (self.pass)(stream, bytes);
    }

    /// Passes on what is left, and returns the last lines.
    pub(crate) fn finish(mut self) -> String {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.waiting[stream as usize]);
            if !rest.is_empty() {
                let masked = mask(&rest, &self.parts);
                self.emit(stream, &masked);
            }
        }
        let text = String::from_utf8_lossy(&self.tail);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Returns how much of a long line can be passed on: neither a secret nor the beginning of one is
/// cut.
fn cut(line: &[u8], parts: &[Vec<u8>]) -> usize {
    let longest = parts.first().map_or(0, Vec::len);
    let end = line.len().saturating_sub(longest);
    let across = |start: &usize| {
        parts.iter().find(|part| line[*start..].starts_with(part)).map(|part| start + part.len()).filter(|at| *at > end)
    };
    (end.saturating_sub(longest)..end).find_map(|start| across(&start)).unwrap_or(end)
}

fn mask(bytes: &[u8], parts: &[Vec<u8>]) -> Vec<u8> {
    let (mut masked, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match parts.iter().find(|part| bytes[at..].starts_with(part)) {
            Some(part) => {
                masked.extend_from_slice(MASK);
                at += part.len();
            }
            None => {
                masked.push(bytes[at]);
                at += 1;
            }
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(secret: &str, pieces: &[&str]) -> (String, String) {
        let mut secrets = Secrets::default();
        secrets.insert("s".into(), secret.into());
        assert_eq!(format!("{secrets:?}"), "{\"s\"}");
        let mut seen = Vec::new();
        let mut pass = |_: Stream, bytes: &[u8]| seen.extend_from_slice(bytes);
        let mut output = Output::new(&secrets, &mut pass);
        pieces.iter().for_each(|piece| output.write(Stream::Stdout, piece.as_bytes()));
        let tail = output.finish();
        (String::from_utf8(seen).unwrap(), tail)
    }

    #[test]
    fn secrets_are_masked_across_pieces_and_line_by_line() {
        let (seen, tail) = shown("top-secret\n", &["a top-se", "cret b\nc", " top-secret"]);
        assert_eq!(seen, "a *** b\nc ***");
        assert_eq!(tail, seen);
        assert_eq!(shown("-----BEGIN\nabcdef\nx\n", &["abcdef x -----BEGIN\n"]).0, "*** x ***\n");
        for before in 0..30 {
            let long = "y".repeat(MAX_LINE - before);
            let (seen, _) = shown("top-secret", &[&format!("{long}top-secretzzzz"), "top-se", "cret", &long]);
            assert_eq!(seen, format!("{long}***zzzz***{long}"), "{before}");
        }
    }

    #[test]
    fn failures_repeat_the_last_lines_only() {
        let many: Vec<String> = (0..100).map(|n| format!("{n}\n")).collect();
        let tail = shown("none", &many.iter().map(String::as_str).collect::<Vec<_>>()).1;
        assert!(tail.starts_with("80\n") && tail.ends_with("99"), "{tail}");
    }
}
