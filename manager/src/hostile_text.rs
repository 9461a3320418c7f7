//! Text that a guest wrote, made safe to show: it must not drive the reader's terminal.

/// `text` with every control character but newline and tab written as an escape.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_survive() {
        assert_eq!(printable("a\x1b]0;title\x07b\r\n\tc\u{9b}1m"), "a\\u{1b}]0;title\\u{7}b\\r\n\tc\\u{9b}1m");
    }
}
