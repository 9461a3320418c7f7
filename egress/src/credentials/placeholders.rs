//! Search for the placeholders of secrets in what a guest sends, as they are and percent-encoded. A placeholder is not
//! secret: to find one where it may not go shows a mistake, or an attempt to have the secret put there. So a guest that
//! hides its placeholder by any other encoding gains nothing: only a placeholder that is found is replaced.

use memchr::{memchr, memmem::Finder};
use std::rc::Rc;

/// The placeholders of a sandbox, by their position in its settings.
#[derive(Debug, Default)]
pub struct Placeholders {
    finders: Vec<Finder<'static>>,
    longest: usize,
}

impl Placeholders {
    /// Returns the search for these placeholders. An empty one is never found.
    #[must_use]
    pub fn new<'a>(placeholders: impl Iterator<Item = &'a str>) -> Self {
        let finders: Vec<_> = placeholders.map(|text| Finder::new(text).into_owned()).collect();
        let longest = finders.iter().map(|finder| finder.needle().len()).max().unwrap_or(0);
        Self { finders, longest }
    }

    /// Returns true if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.finders.is_empty()
    }

    /// Returns the position of a placeholder that is in `bytes` as it is.
    #[must_use]
    pub fn find_plain(&self, bytes: &[u8]) -> Option<usize> {
        self.finders.iter().position(|finder| !finder.needle().is_empty() && finder.find(bytes).is_some())
    }

    /// Returns the position of a placeholder that is in `bytes`, as it is or percent-encoded.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<usize> {
        self.find_plain(bytes).or_else(|| {
            memchr(b'%', bytes)?;
            let mut decoded = Vec::with_capacity(bytes.len());
            Percent::default().decode(bytes, &mut decoded);
            self.find_plain(&decoded)
        })
    }
}

/// A search in a stream of bytes that come in parts. Its memory is a few times the length of a placeholder.
#[derive(Debug)]
pub struct Scan {
    placeholders: Rc<Placeholders>,
    plain: Vec<u8>,
    decoded: Vec<u8>,
    percent: Percent,
}

impl Scan {
    /// Begins a search.
    #[must_use]
    pub fn new(placeholders: Rc<Placeholders>) -> Self {
        Self { placeholders, plain: Vec::new(), decoded: Vec::new(), percent: Percent::default() }
    }

    /// Returns the position of a placeholder that ends in `part`.
    pub fn feed(&mut self, part: &[u8]) -> Option<usize> {
        let placeholders = Rc::clone(&self.placeholders);
        if placeholders.is_empty() {
            return None;
        }
        let kept = placeholders.longest.saturating_sub(1);
        let begin = &part[..part.len().min(kept)];
        let across = |tail: &[u8], begin: &[u8]| placeholders.find_plain(&[tail, begin].concat());
        let mut found = across(&self.plain, begin).or_else(|| placeholders.find_plain(part));
        if memchr(b'%', part).is_none() && self.percent.is_between() {
            // What is not encoded was searched already.
            found = found.or_else(|| across(&self.decoded, begin));
            keep_end(&mut self.decoded, part, kept);
        } else {
            let mut decoded = std::mem::take(&mut self.decoded);
            self.percent.decode(part, &mut decoded);
            found = found.or_else(|| placeholders.find_plain(&decoded));
            keep_end(&mut decoded, &[], kept);
            self.decoded = decoded;
        }
        keep_end(&mut self.plain, part, kept);
        found
    }
}

/// Keeps the last `kept` bytes of `tail` with `part` behind it.
fn keep_end(tail: &mut Vec<u8>, part: &[u8], kept: usize) {
    let part = &part[part.len().saturating_sub(kept)..];
    let surplus = (tail.len() + part.len()).saturating_sub(kept).min(tail.len());
    tail.drain(..surplus);
    tail.extend_from_slice(part);
}

/// Percent decoding (RFC 3986, 2.1) of bytes that come in parts. What is not an escape stays as it is.
#[derive(Debug, Default)]
struct Percent {
    /// `%` and perhaps a digit, at the end of the part before.
    begun: Vec<u8>,
}

impl Percent {
    fn is_between(&self) -> bool {
        self.begun.is_empty()
    }

    fn decode(&mut self, part: &[u8], decoded: &mut Vec<u8>) {
        for byte in part {
            match (self.begun.as_slice(), digit(*byte)) {
                ([], _) if *byte != b'%' => decoded.push(*byte),
                ([], _) => self.begun.push(*byte),
                ([_], Some(_)) => self.begun.push(*byte),
                ([_, high], Some(low)) => {
                    decoded.push(digit(*high).unwrap_or(0) << 4 | low);
                    self.begun.clear();
                }
                (_, None) => {
                    decoded.append(&mut self.begun);
                    // `%%41` has an escape in it.
                    if *byte == b'%' {
                        self.begun.push(*byte);
                    } else {
                        decoded.push(*byte);
                    }
                }
                // `begun` has at most two bytes.
                ([_, _, _, ..], Some(_)) => self.begun.clear(),
            }
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: &str = "secret-one-0123456789abcdef01234567";
    const TWO: &str = "secret-two-fedcba9876543210fedcba98765";

    fn placeholders() -> Rc<Placeholders> {
        Rc::new(Placeholders::new([ONE, TWO].into_iter()))
    }

    fn encoded(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    #[test]
    fn placeholder_is_found_plain_and_percent_encoded() {
        let all = placeholders();
        for (text, found) in [
            (format!("/?key={ONE}&x"), Some(0)),
            (format!("/?key={}", encoded(TWO)), Some(1)),
            (format!("/?key=%73{}", &ONE[1..]), Some(0)),
            (format!("%%7{}%{}", encoded(ONE), "4"), Some(0)),
            (ONE[1..].to_owned(), None),
            (ONE.to_uppercase(), None),
            (String::new(), None),
        ] {
            assert_eq!(all.find(text.as_bytes()), found, "{text}");
        }
        assert_eq!(Placeholders::default().find(ONE.as_bytes()), None);
        assert_eq!(Placeholders::new([""].into_iter()).find(ONE.as_bytes()), None);
    }

    #[test]
    fn scan_takes_bounded_memory() {
        let mut scan = Scan::new(placeholders());
        for part in [vec![b'%'; 1 << 20], vec![b'x'; 1 << 20], b"%4".repeat(1 << 19)] {
            assert_eq!(scan.feed(&part), None);
            assert!(scan.plain.len() < TWO.len() && scan.decoded.len() < TWO.len() && scan.percent.begun.len() <= 2);
        }
    }

    proptest! {
        #[test]
        fn placeholder_is_found_however_a_stream_is_cut(
            before in proptest::collection::vec(any::<u8>(), 0..100),
            after in proptest::collection::vec(any::<u8>(), 0..50),
            escaped in proptest::collection::vec(any::<bool>(), ONE.len()),
            cuts in proptest::collection::vec(0_usize..200, 0..8),
        ) {
            let mut stream = before;
            // A digit after an escape that the random bytes began would be taken for a part of it.
            stream.push(b' ');
            stream.push(b' ');
            for (byte, escaped) in ONE.bytes().zip(escaped) {
                if escaped { stream.extend(format!("%{byte:02x}").bytes()) } else { stream.push(byte) }
            }
            stream.extend(after);
            prop_assert_eq!(placeholders().find(&stream), Some(0));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut scan = Scan::new(placeholders());
            let found = cuts.windows(2).find_map(|cut| scan.feed(&stream[cut[0]..cut[1]]));
            prop_assert_eq!(found, Some(0));
        }
    }
}
