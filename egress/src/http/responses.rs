//! The response to the first request of a connection, as far as it says whether the connection stays HTTP.

/// Longest head of a response in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Reads the first response of a connection while it passes.
#[derive(Debug, Default)]
pub struct FirstResponse {
    /// What came since the last interim response.
    head: Vec<u8>,
    answer: Option<bool>,
}

impl FirstResponse {
    /// Looks at bytes that pass. Returns whether the protocol is switched, once that is known.
    pub fn observe(&mut self, bytes: &[u8]) -> Option<bool> {
        if self.answer.is_some() {
            return self.answer;
        }
        self.head.extend_from_slice(&bytes[..bytes.len().min(MAX_HEAD - self.head.len())]);
        while let Some(end) = self.head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            match status(&self.head) {
                Some(101) => self.answer = Some(true),
                // 100 and 103 come before the response.
                Some(100..=199) => {
                    self.head.drain(..end + 4);
                    continue;
                }
                _ => self.answer = Some(false),
            }
            break;
        }
        if self.answer.is_none() && self.head.len() >= MAX_HEAD {
            self.answer = Some(false);
        }
        if self.answer.is_some() {
            self.head = Vec::new();
        }
        self.answer
    }
}

/// The status of a response, as in `HTTP/1.1 101 Switching Protocols`.
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    let [_, b' ', digits @ ..] = rest else { return None };
    let digits = digits.get(..3)?;
    let is_number = digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switched(response: &[u8], piece: usize) -> Option<bool> {
        let mut first = FirstResponse::default();
        response.chunks(piece).fold(None, |_, bytes| first.observe(bytes))
    }

    #[test]
    fn only_a_101_switches() {
        for piece in [1, 3, 1000] {
            assert_eq!(switched(b"HTTP/1.1 101 Switching Protocols\r\n\r\nraw", piece), Some(true));
            assert_eq!(switched(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 S\r\n\r\n", piece), Some(true));
            assert_eq!(switched(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 S\r\n\r\n", piece), Some(false));
            assert_eq!(switched(b"HTTP/1.1 101 Switching\r\n", piece), None);
            assert_eq!(switched(b"nonsense\r\n\r\n", piece), Some(false));
        }
        assert_eq!(switched(&vec![b'a'; MAX_HEAD], 1000), Some(false));
    }
}
