//! Pax records: `length key=value\n`, where the length includes itself (pax(1)).

/// The bytes are not pax records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotRecords;

/// Appends one record.
pub(crate) fn push(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + digits(len) {
        len = rest + digits(len);
    }
    into.extend_from_slice(len.to_string().as_bytes());
    into.push(b' ');
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// Returns key and value of each record.
pub(crate) fn parse(mut bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), NotRecords>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let record = take(&mut bytes);
        if record.is_none() {
            bytes = &[];
        }
        Some(record.ok_or(NotRecords))
    })
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&bytes[..blank])?).ok()?;
    let record = bytes.get(blank + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    *bytes = &bytes[len..];
    Some((&record[..equals], &record[equals + 1..]))
}

/// Reads a number that consists only of decimal digits.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Reads seconds with a fraction, as in `mtime`. Digits below a nanosecond are ignored.
pub(crate) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
    let nanoseconds = (0..9).fold(0, |sum, at| sum * 10 + digit(at));
    match (is_negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

/// Formats a time: the inverse of [`time`].
pub(crate) fn time_text(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        // -0.5 s is one second before the epoch and half a second after that.
        (_, _) => {
            let sign_and_whole = if seconds == -1 { "-0".to_owned() } else { (seconds + 1).to_string() };
            format!("{sign_and_whole}.{:09}", 1_000_000_000 - nanoseconds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_includes_its_own_digits() {
        for len in (0..=120).chain(985..=1010) {
            let mut bytes = Vec::new();
            push(&mut bytes, b"path", &vec![b'x'; len]);
            push(&mut bytes, b"k", b"a=b\n");
            let read: Vec<_> = parse(&bytes).collect();
            assert_eq!(read, [Ok((&b"path"[..], &vec![b'x'; len][..])), Ok((&b"k"[..], &b"a=b\n"[..]))]);
        }
    }

    #[test]
    fn invalid_records_are_errors() {
        for bytes in
            [&b"x"[..], b"5 a=b\n", b"7 a=b\n", b"6 ab c\n", b"99999999999999999999 a=b\n", b"6 =ab\n", b"0 a=b\n"]
        {
            assert!(parse(bytes).any(|record| record.is_err()), "{bytes:?}");
            assert!(parse(bytes).count() <= 2);
        }
        assert_eq!(parse(b"").count(), 0);
    }

    #[test]
    fn times_have_fractions_on_both_sides_of_the_epoch() {
        for (seconds, nanoseconds) in [(0, 0), (5, 1), (5, 999_999_999), (-1, 500_000_000), (-7, 1), (-7, 0), (0, 70)] {
            let text = time_text(seconds, nanoseconds);
            assert_eq!(time(text.as_bytes()), Some((seconds, nanoseconds)), "{text}");
        }
        assert_eq!(time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time(b"3.1234567891234"), Some((3, 123_456_789)));
        for text in [&b""[..], b".5", b"1.x", b"--1", b"99999999999999999999"] {
            assert_eq!(time(text), None);
        }
    }
}
