//! The chain of an audit log, and the check of a log: numbers without a gap from 1 on,
//! with the hash of the line before and the line's own hash in each line.
//!
//! A hash is SHA-256 in hexadecimal over the line as it is, without its `hash` member and its
//! newline. The chain shows that lines were changed, removed or reordered; a process that can write
//! the whole file can make a new chain. Against that, keep the last hash elsewhere
//! (`sandboxvm audit verify` prints it).

use crate::audit::line::Line;
use sandboxvm_protocol::ids::SandboxId;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{fmt::Write, io::BufRead};

/// Maximum length of a line in bytes. The text of an event comes from arguments of at most 1 MiB,
/// which JSON may write six times as long.
pub(crate) const MAX_LINE: u64 = 8 << 20;

/// The hash before the first line.
pub(crate) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The end of a log: number and hash of its last line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) hash: String,
}

impl Head {
    pub(crate) fn genesis() -> Self {
        Self { seq: 0, hash: GENESIS.to_owned() }
    }
}

/// Why a log is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A line is not a line of an audit log.
    #[error("line {0} is not a line of an audit log: {1}")]
    NotALine(u64, String),
    /// A line was changed.
    #[error("line {0} was changed: its text does not match its hash")]
    Changed(u64),
    /// A line was removed, added or moved.
    #[error("line {0} does not follow the line before it: lines were removed, added or moved")]
    Broken(u64),
    /// The last lines are missing.
    #[error("the log ends after {found} of {expected} lines: lines were removed from its end")]
    Shortened {
        /// Number of lines in the log.
        found: u64,
        /// Number of lines that were written.
        expected: u64,
    },
    /// The last line is not the one that was written last.
    #[error("line {0} is not the line that was written last: the log was replaced")]
    Replaced(u64),
    /// A line belongs to another sandbox.
    #[error("line {0} belongs to another sandbox")]
    Foreign(u64),
}

/// The result of checking a valid log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Number of lines.
    pub lines: u64,
    /// The hash of the last line.
    pub head: String,
}

/// Returns the text of a line, with its newline, and the new head.
pub(crate) fn seal(line: &Line) -> Result<(Vec<u8>, Head), serde_json::Error> {
    let mut text = serde_json::to_string(line)?;
    let hash = hash(&text);
    // Replaces the closing brace.
    text.pop();
    // Writing to a String cannot fail.
    let _ = writeln!(text, ",\"hash\":\"{hash}\"}}");
    Ok((text.into_bytes(), Head { seq: line.seq, hash }))
}

/// Splits a line without its newline into the text that was hashed and the stated hash.
pub(crate) fn unseal(text: &str) -> Option<(String, &str)> {
    let (before, rest) = text.rsplit_once(",\"hash\":\"")?;
    let stated = rest.strip_suffix("\"}")?;
    (stated.len() == GENESIS.len()).then(|| (format!("{before}}}"), stated))
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Checks every line of `log`, and that the log ends as `last` says.
pub(crate) fn verify(log: impl BufRead, of: &SandboxId, last: Option<&Head>) -> Result<Verified, Violation> {
    let mut head = Head::genesis();
    let mut log = log.take(u64::MAX);
    loop {
        let number = head.seq + 1;
        let mut text = Vec::new();
        log.set_limit(MAX_LINE);
        let read = log.read_until(b'\n', &mut text).map_err(|error| Violation::NotALine(number, error.to_string()))?;
        if read == 0 {
            break;
        }
        let not_a_line = |why: &str| Violation::NotALine(number, why.to_owned());
        let text = String::from_utf8(text).map_err(|_| not_a_line("not UTF-8"))?;
        let text = text.strip_suffix('\n').ok_or_else(|| not_a_line("cut off"))?;
        let (hashed, stated) = unseal(text).ok_or_else(|| not_a_line("without a hash"))?;
        let line: Line = serde_json::from_str(&hashed).map_err(|error| not_a_line(&error.to_string()))?;
        if hash(&hashed) != stated {
            return Err(Violation::Changed(number));
        }
        if line.seq != number || line.prev != head.hash {
            return Err(Violation::Broken(number));
        }
        if line.sandbox != *of {
            return Err(Violation::Foreign(number));
        }
        head = Head { seq: number, hash: stated.to_owned() };
    }
    match last {
        Some(last) if last.seq > head.seq => Err(Violation::Shortened { found: head.seq, expected: last.seq }),
        Some(last) if last.seq == head.seq && last.hash != head.hash => Err(Violation::Replaced(head.seq)),
        _ => Ok(Verified { lines: head.seq, head: head.hash }),
    }
}
