//! Text that a guest wrote, made safe to show: it must not drive the reader's terminal.

/// `text` with every control character but newline and tab written as an escape, and every character that changes the
/// order or the line in which others are shown.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    shown
}

/// False for those that [`printable`] escapes.
#[must_use]
pub fn is_printable(c: char) -> bool {
    let rearranges = matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !rearranges && (!c.is_control() || c == '\n' || c == '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_survive() {
        assert_eq!(printable("a\u{202e}b\u{2066}c\u{2028}d"), "a\\u{202e}b\\u{2066}c\\u{2028}d");
        assert_eq!(printable("a\x1b]0;title\x07b\r\n\tc\u{9b}1m"), "a\\u{1b}]0;title\\u{7}b\\r\n\tc\\u{9b}1m");
    }
}
