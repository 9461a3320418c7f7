//! Makes text that a guest or a VMM wrote safe to show: it may not control the terminal of the
//! reader.

use sandboxvm_protocol::vmm::ExitReason;

/// Returns `text` in which every control character except newline and tab is escaped, and every
/// character that changes the order or the line in which others are shown.
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

/// Like [`printable`], on one line: a second line could be taken for a message of sandboxvm.
#[must_use]
pub fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// Returns the reason that a VMM reports, with its text on one line.
pub(crate) fn shown(reason: ExitReason) -> ExitReason {
    match reason {
        ExitReason::InternalError { suberror, rip, bytes } => {
            ExitReason::InternalError { suberror, rip, bytes: one_line(&bytes) }
        }
        ExitReason::UnexpectedExit { name } => ExitReason::UnexpectedExit { name: one_line(&name) },
        ExitReason::HostFailure { message } => ExitReason::HostFailure { message: one_line(&message) },
        ExitReason::BadConfig { message } => ExitReason::BadConfig { message: one_line(&message) },
        reason => reason,
    }
}

/// Returns false for characters that [`printable`] escapes.
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
        assert_eq!(one_line("a\tb\nsandboxvm: c\x1b[2J"), "a\\tb\\nsandboxvm: c\\u{1b}[2J");
        assert_eq!(printable("a\x1b]0;title\x07b\r\n\tc\u{9b}1m"), "a\\u{1b}]0;title\\u{7}b\\r\n\tc\\u{9b}1m");
    }
}
