//! The log of a front, which may have been taken over: read from a pipe, bounded, and written to the log of this process.

use std::{
    io::{self, Write},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    time::Instant,
};

/// Maximum length of a line.
const MAX_LINE: u64 = 16 << 10;
/// Lines of one [`WINDOW`].
const MAX_LINES: u32 = 2000;
const WINDOW: Duration = Duration::from_secs(1);

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontLog {
    /// As text.
    Text,
    /// As JSON objects.
    Json,
}

impl FrontLog {
    /// A line as it may be in the log: nothing in it ends the line or controls a terminal, and JSON stays JSON.
    fn line(self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\r', '\n']);
        let is_json = || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok();
        let escaped = || {
            let part = |letter: char| match letter.is_control() {
                true => letter.escape_default().to_string(),
                false => letter.to_string(),
            };
            text.chars().map(part).collect::<String>()
        };
        match self {
            Self::Text => escaped(),
            // A valid object can only have line ends between its parts, and a line has none.
            Self::Json if is_json() => escaped(),
            Self::Json => {
                serde_json::json!({ "level": "WARN", "message": "the front wrote", "text": text }).to_string()
            }
        }
    }

    /// Writes what the front writes, until it ends.
    pub(crate) async fn pass_on(self, from: impl AsyncRead + Unpin, mut to: impl Write) -> io::Result<()> {
        let mut from = BufReader::new(from);
        let (mut begun, mut lines, mut line) = (Instant::now(), 0_u32, Vec::new());
        loop {
            line.clear();
            if (&mut from).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            if begun.elapsed() >= WINDOW {
                let left_out = lines.saturating_sub(MAX_LINES);
                if left_out > 0 {
                    tracing::warn!(left_out, "the front wrote more lines than its log has room for");
                }
                (begun, lines) = (Instant::now(), 0);
            }
            lines = lines.saturating_add(1);
            if lines <= MAX_LINES {
                // As one write, so that lines of both processes do not mix. The front is not to end when this fails.
                let _ = to.write_all(format!("{}\n", self.line(&line)).as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn passed(log: FrontLog, from: &[u8]) -> String {
        let mut to = Vec::new();
        log.pass_on(from, &mut to).await.unwrap();
        String::from_utf8(to).unwrap()
    }

    #[tokio::test]
    async fn lines_of_a_log_are_passed_on_and_others_cannot_be_taken_for_them() {
        let json = "{\"level\":\"INFO\",\"message\":\"a\\u001b\"}\n";
        assert_eq!(passed(FrontLog::Json, json.as_bytes()).await, json);
        assert_eq!(passed(FrontLog::Text, b"INFO answered\n").await, "INFO answered\n");
        assert_eq!(passed(FrontLog::Text, b"a\x1b[2J\rb\x00").await, "a\\u{1b}[2J\\rb\\u{0}\n");
        let other = passed(FrontLog::Json, b"panicked\x1b\n").await;
        let other: serde_json::Value = serde_json::from_str(&other).unwrap();
        assert_eq!(other["text"], "panicked\u{1b}");
    }

    #[tokio::test]
    async fn a_line_and_the_number_of_lines_are_bounded() {
        let long = passed(FrontLog::Text, &vec![b'x'; 40 << 10]).await;
        assert_eq!(long.lines().map(str::len).max(), Some(16 << 10));
        let many = passed(FrontLog::Text, "x\n".repeat(100_000).as_bytes()).await;
        assert!((2000..20_000).contains(&many.lines().count()), "{}", many.lines().count());
    }
}
