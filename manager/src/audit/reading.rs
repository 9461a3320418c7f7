//! Reads parts of an audit log: from a byte on, up to a byte, or from a time on. None of these
//! reads the whole log. Takes no lock, so that a reader never delays a writer; a line that is being
//! written is left for the next read.
//!
//! This module does not check that the lines are those that were written: `Trail::verify` does.

use super::{
    chain::MAX_LINE,
    log::{AuditError, Trail},
};
use crate::record::rfc3339;
use serde::Deserialize;
use std::{fs::File, io, os::unix::fs::FileExt, time::SystemTime};

/// Maximum number of bytes that are read at a time. They contain the longest line completely,
/// wherever it starts.
const AT_ONCE: u64 = 2 * MAX_LINE;
/// Number of bytes that are read first. Most lines are short, so these are some hundred lines.
const WINDOW: u64 = 64 << 10;

impl Trail {
    /// Returns the lines from byte `offset` on, as they are, at most 16 MiB of them, and the
    /// position where they end.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read_from(&self, offset: u64) -> Result<(Vec<u8>, u64), AuditError> {
        let log = self.open_existing()?;
        let mut text = self.read(&log, offset, offset.saturating_add(AT_ONCE))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        text.truncate(whole);
        Ok((text, offset + whole as u64))
    }

    /// Returns the last lines that end at byte `end` or before, as they are, at most 16 MiB of
    /// them, and the position where they start. With `None`, returns those at the end of the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read_before(&self, end: Option<u64>) -> Result<(Vec<u8>, u64), AuditError> {
        let log = self.open_existing()?;
        let length = log.metadata().map_err(self.fail("read"))?.len();
        let end = end.map_or(length, |end| end.min(length));
        let mut window = WINDOW;
        loop {
            let start = end.saturating_sub(window);
            let mut text = self.read(&log, start, end)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            text.truncate(whole);
            // The line that starts before the window is left for another call.
            let cut = if start == 0 { Some(0) } else { text.iter().position(|byte| *byte == b'\n').map(|at| at + 1) };
            match cut {
                Some(cut) if cut < text.len() || start == 0 => return Ok((text.split_off(cut), start + cut as u64)),
                _ if window >= AT_ONCE => return Err(AuditError::NoEnd(self.path().to_owned())),
                _ => window = (window * 8).min(AT_ONCE),
            }
        }
    }

    /// Returns the position of the first line that is not older than `time`, or of the end of the
    /// last line. Uses a binary search: if the host's clock was set back, it may be another line
    /// near that one.
    ///
    /// # Errors
    /// When the log cannot be read, or contains an invalid line at that place.
    pub fn first_since(&self, time: SystemTime) -> Result<u64, AuditError> {
        let log = self.open_existing()?;
        let (mut low, mut high) = (0, log.metadata().map_err(self.fail("read"))?.len());
        // Lines that start before `low` are older, and lines that start at `high` or after are not.
        while low < high {
            let middle = low + (high - low) / 2;
            match self.line_after(&log, middle)? {
                Some(line) if line.begin < high && line.time < time => low = line.end,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Returns the first line that starts at byte `offset` or after it.
    fn line_after(&self, log: &File, offset: u64) -> Result<Option<TimedLine>, AuditError> {
        #[derive(Deserialize)]
        struct Timed {
            #[serde(with = "rfc3339")]
            time: SystemTime,
        }
        let mut window = WINDOW;
        loop {
            // Starts one byte earlier, which shows whether a line starts at `offset`.
            let from = offset.saturating_sub(1);
            let text = self.read(log, from, from + window)?;
            let is_all = (text.len() as u64) < window;
            let newline = |at: usize| text[at..].iter().position(|byte| *byte == b'\n').map(|end| at + end + 1);
            let begin = if offset == 0 { Some(0) } else { newline(0) };
            match begin.map(|begin| (begin, newline(begin))) {
                Some((begin, Some(end))) => {
                    let Timed { time } = serde_json::from_slice(&text[begin..end])
                        .map_err(|error| self.fail("find a time in")(error.into()))?;
                    return Ok(Some(TimedLine { begin: from + begin as u64, end: from + end as u64, time }));
                }
                _ if is_all => return Ok(None),
                _ if window >= AT_ONCE => return Err(AuditError::NoEnd(self.path().to_owned())),
                _ => window = (window * 8).min(AT_ONCE),
            }
        }
    }

    /// Returns the bytes from `start` to `end`, or to the end of the log.
    fn read(&self, log: &File, start: u64, end: u64) -> Result<Vec<u8>, AuditError> {
        let length = log.metadata().map_err(self.fail("read"))?.len();
        let wanted = end.min(length).saturating_sub(start).min(AT_ONCE);
        let mut text = vec![0; usize::try_from(wanted).unwrap_or(usize::MAX)];
        match log.read_exact_at(&mut text, start) {
            Ok(()) => Ok(text),
            // A part of a line was removed meanwhile. Complete lines never are.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.read(log, start, end),
            Err(error) => Err(self.fail("read")(error)),
        }
    }
}

/// The position of a line, and its time.
struct TimedLine {
    begin: u64,
    end: u64,
    time: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::event::Event, home::layout::Home};
    use sandboxvm_protocol::identity::SandboxId;
    use std::{fs, time::Duration};

    /// Creates a log with lines of these lengths, and returns the position of each.
    fn log_of(lengths: &[usize]) -> (tempfile::TempDir, Trail, Vec<u64>) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let trail = Trail::of(&home, &SandboxId::try_from("abcdefgh".to_owned()).unwrap());
        let begins = lengths.iter().map(|length| {
            let begin = fs::metadata(trail.path()).map_or(0, |log| log.len());
            trail.append(Event::NotStarted { exec: 1, reason: "x".repeat(*length) }).unwrap();
            begin
        });
        let begins = begins.collect();
        (dir, trail, begins)
    }

    fn numbers(text: &[u8]) -> Vec<u64> {
        let lines = std::str::from_utf8(text).unwrap().lines();
        lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap()).collect()
    }

    #[test]
    fn reading_backwards_returns_the_same_lines_in_reverse() {
        let lengths = [0, 70_000, 10, 10, 200_000, 600_000, 3, 60_000, 5_000_000, 1];
        let (_dir, trail, begins) = log_of(&lengths);
        let (all, end) = trail.read_from(0).unwrap();
        assert_eq!(numbers(&all), (1..=10).collect::<Vec<_>>());
        let mut found = Vec::new();
        let mut before = None;
        while before != Some(0) {
            let (text, begin) = trail.read_before(before).unwrap();
            let mut lines = numbers(&text);
            assert_eq!(begins[usize::try_from(lines[0]).unwrap() - 1], begin);
            lines.reverse();
            found.extend(lines);
            before = Some(begin);
        }
        assert_eq!(found, (1..=10).rev().collect::<Vec<_>>());
        assert_eq!(trail.read_before(Some(0)).unwrap(), (Vec::new(), 0));
        // Not from the middle of a line, and not up to one that is being written.
        assert_eq!(numbers(&trail.read_before(Some(begins[3] + 5)).unwrap().0).last(), Some(&3));
        let log = fs::OpenOptions::new().append(true).open(trail.path()).unwrap();
        std::io::Write::write_all(&mut &log, b"{\"seq\":11,\"ti").unwrap();
        assert_eq!(numbers(&trail.read_before(None).unwrap().0), [10]);
        assert_eq!(trail.read_from(end).unwrap(), (Vec::new(), end));
    }

    #[test]
    fn first_line_since_a_time_is_found() {
        for lengths in [vec![], vec![0], vec![1, 2, 300_000, 4, 5], vec![100; 500]] {
            let (_dir, trail, begins) = log_of(&lengths);
            if begins.is_empty() {
                assert!(matches!(trail.first_since(SystemTime::now()), Err(AuditError::None(_))));
                continue;
            }
            let (all, end) = trail.read_from(0).unwrap();
            let log = trail.open_existing().unwrap();
            let times: Vec<SystemTime> =
                begins.iter().map(|begin| trail.line_after(&log, *begin).unwrap().unwrap().time).collect();
            assert!(times.is_sorted());
            for (begin, time) in begins.iter().zip(&times) {
                // The first of the lines with the same time.
                let first = begins[times.iter().position(|other| other == time).unwrap()];
                assert_eq!(trail.first_since(*time).unwrap(), first, "{begin}");
            }
            let last = *times.last().unwrap();
            assert_eq!(trail.first_since(last + Duration::from_secs(1)).unwrap(), end);
            assert_eq!(trail.first_since(SystemTime::UNIX_EPOCH).unwrap(), 0);
            assert_eq!(all.len() as u64, end);
        }
    }
}
