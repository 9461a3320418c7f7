//! The log of one build: steps, and what its commands write. Texts of guests are bounded and have no control characters.

use crate::store::unix_millis;
use sandboxvm_build::engine::{Event, Progress, Stream};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Maximum number of lines. Further ones are dropped, but for the last line that says so.
const MAX_LINES: usize = 4000;
/// Maximum size of all lines in bytes: the file of a log is one record.
const MAX_BYTES: usize = 384 << 10;
/// Maximum length of a line in bytes.
const MAX_LINE: usize = 8 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Unix time in milliseconds.
    pub(crate) at: u64,
    pub(crate) level: Level,
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct BuildLog(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<Line>,
    bytes: usize,
    is_full: bool,
    /// The step that runs.
    step: Option<String>,
    /// Output without the end of its line, for each stream.
    rests: [Vec<u8>; 2],
}

/// The name of a step as clients know it.
pub(crate) fn step_name(number: usize) -> String {
    if number == 0 { "base".to_owned() } else { number.to_string() }
}

impl BuildLog {
    /// Adds a line about what the server does.
    pub(crate) fn say(&self, level: Level, message: &str) {
        let mut lines = self.lock();
        lines.end_output();
        lines.add(level, message);
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for BuildLog {
    fn notify(&self, event: Event<'_>) {
        let mut lines = self.lock();
        match event {
            Event::Step { number, of, text, cached, .. } => {
                lines.end_output();
                lines.step = Some(step_name(number));
                let cached = if cached { "CACHED " } else { "" };
                let text = format!("{cached}[builder {number}/{of}] {text}");
                lines.add(Level::Info, &text);
            }
            Event::Output(stream, bytes) => lines.output(stream, bytes),
            Event::Note(text) => lines.add(Level::Info, text),
            Event::Stored(_) => lines.end_output(),
        }
    }
}

impl Lines {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        let rest = &mut self.rests[stream as usize];
        let mut whole = std::mem::take(rest);
        whole.extend_from_slice(bytes);
        let mut pieces: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').collect();
        let last = pieces.pop().unwrap_or_default();
        let last = &last[..last.len().min(MAX_LINE)];
        let level = match stream {
            Stream::Stdout => Level::Info,
            Stream::Stderr => Level::Warn,
        };
        for piece in pieces {
            self.add(level, &String::from_utf8_lossy(&piece[..piece.len().min(MAX_LINE)]));
        }
        self.rests[stream as usize] = last.to_vec();
    }

    fn end_output(&mut self) {
        for (at, level) in [(0, Level::Info), (1, Level::Warn)] {
            let rest = std::mem::take(&mut self.rests[at]);
            if !rest.is_empty() {
                self.add(level, &String::from_utf8_lossy(&rest));
            }
        }
    }

    fn add(&mut self, level: Level, text: &str) {
        if self.is_full {
            return;
        }
        let message: String = text.chars().filter(|char| !char.is_control() || *char == '\t').collect();
        let step = self.step.clone();
        let at = unix_millis(SystemTime::now());
        self.bytes += message.len() + 96;
        if self.bytes > MAX_BYTES || self.lines.len() + 1 >= MAX_LINES {
            self.is_full = true;
            let message = "the log is full; further lines are not kept".to_owned();
            self.lines.push(Line { at, level: Level::Warn, message, step });
            return;
        }
        self.lines.push(Line { at, level, message, step });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_have_their_step_and_end() {
        let log = BuildLog::default();
        log.notify(Event::Step { stage: 0, number: 2, of: 3, text: "RUN x", cached: true });
        log.notify(Event::Output(Stream::Stdout, b"one\ntw"));
        log.notify(Event::Output(Stream::Stderr, b"\x1b[31mred\n"));
        log.notify(Event::Output(Stream::Stdout, b"o"));
        log.say(Level::Error, "failed");
        let lines: Vec<_> = log.lines().into_iter().map(|line| (line.level, line.message)).collect();
        let line = |level, text: &str| (level, text.to_owned());
        assert_eq!(
            lines,
            [
                line(Level::Info, "CACHED [builder 2/3] RUN x"),
                line(Level::Info, "one"),
                line(Level::Warn, "[31mred"),
                line(Level::Info, "two"),
                line(Level::Error, "failed"),
            ]
        );
        assert_eq!(log.lines()[4].step.as_deref(), Some("2"));
        let endless = [b'x'; 1000];
        for _ in 0..2000 {
            log.notify(Event::Output(Stream::Stdout, &endless));
        }
        log.notify(Event::Output(Stream::Stdout, &[b'\n'; 10_000]));
        assert!(log.lines().len() <= MAX_LINES);
        assert!(serde_json::to_vec(&log.lines()).unwrap().len() < 1 << 20);
        assert!(log.lines().last().unwrap().message.contains("the log is full"));
    }
}
