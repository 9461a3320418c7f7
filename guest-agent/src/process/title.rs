//! The command that a process was started with, cut to the length that is shown.

use sandboxvm_protocol::agent::CText;
use sandboxvm_protocol::agent::process::{MAX_SHOWN_ARGUMENTS, MAX_SHOWN_TEXT, ShownText};

/// The beginning of an argv.
#[derive(Debug)]
pub(crate) struct Title {
    arguments: Box<[Box<[u8]>]>,
    is_cut: bool,
}

impl Title {
    /// Keeps [`MAX_SHOWN_TEXT`] bytes of all arguments together.
    pub(super) fn new(argv: &[CText]) -> Self {
        let mut left = MAX_SHOWN_TEXT;
        let mut is_cut = argv.len() > MAX_SHOWN_ARGUMENTS;
        let mut arguments = Vec::with_capacity(argv.len().min(MAX_SHOWN_ARGUMENTS));
        for argument in argv.iter().take(MAX_SHOWN_ARGUMENTS).map(CText::as_bytes) {
            let len = argument.len().min(left);
            is_cut |= len < argument.len();
            left -= len;
            arguments.push(argument[..len].into());
        }
        Self { arguments: arguments.into(), is_cut }
    }

    /// Returns the arguments as text, again [`MAX_SHOWN_TEXT`] bytes together, and whether
    /// something is missing.
    pub(crate) fn shown(&self) -> (Vec<ShownText>, bool) {
        let mut left = MAX_SHOWN_TEXT;
        let mut is_cut = self.is_cut;
        let mut shown = Vec::with_capacity(self.arguments.len());
        for argument in &self.arguments {
            // Bytes that are not UTF-8 need more room as text.
            let mut text = String::from_utf8_lossy(argument).into_owned();
            let mut len = text.len().min(left);
            while !text.is_char_boundary(len) {
                len -= 1;
            }
            is_cut |= len < text.len();
            text.truncate(len);
            left -= len;
            shown.push(ShownText(text));
        }
        (shown, is_cut)
    }
}

#[cfg(test)]
mod tests {
    use super::{CText, MAX_SHOWN_ARGUMENTS, MAX_SHOWN_TEXT, Title};

    fn shown(argv: &[Vec<u8>]) -> (Vec<String>, bool) {
        let argv: Vec<CText> = argv.iter().map(|argument| CText::try_from(argument.clone()).unwrap()).collect();
        let (shown, is_cut) = Title::new(&argv).shown();
        (shown.into_iter().map(|text| text.0).collect(), is_cut)
    }

    #[test]
    fn short_commands_are_whole() {
        assert_eq!(shown(&[b"sh".to_vec(), vec![]]), (vec!["sh".to_owned(), String::new()], false));
    }

    #[test]
    fn long_ones_are_cut_to_a_total() {
        for argument in [vec![b'x'; 5000], "\u{fc}".repeat(2500).into_bytes(), vec![0xff; 5000]] {
            let (texts, is_cut) = shown(&[b"sh".to_vec(), argument, b"more".to_vec()]);
            let total: usize = texts.iter().map(String::len).sum();
            assert!(is_cut && total <= MAX_SHOWN_TEXT && total > MAX_SHOWN_TEXT - 4, "{total}");
        }
        let (texts, is_cut) = shown(&vec![b"x".to_vec(); MAX_SHOWN_ARGUMENTS + 1]);
        assert!(is_cut && texts.len() == MAX_SHOWN_ARGUMENTS);
    }
}
