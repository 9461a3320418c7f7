//! The logs of a sandbox: its audit log, which says what was done in it and to it. Who did it on the host, and how the
//! lines are bound together, is for the host's owner (`sandboxvm events`, `sandboxvm audit`) and not for a key's.

use super::{Launcher, views};
use crate::{
    channel::{
        failure::Failure,
        request::{Direction, Level, LogsQuery},
    },
    registry::entry::Entry,
};
use sandboxvm_manager::audit::{AuditError, Line, Trail};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// As E2B's API has it.
const MAX_LINES: usize = 1000;
/// Maximum number of bytes of a log that one request reads after it has found something that the next need not find again: that
/// one continues from the time of the last line.
const MAX_SCANNED: u64 = 64 << 20;
/// Lines of so many bytes are enough for one answer.
const MAX_ANSWER: usize = 16 << 20;

impl Launcher {
    /// The lines that a query asks for, for as long as its answer is wanted.
    pub(super) async fn logs(&self, entry: &Entry, query: LogsQuery) -> Result<Vec<Value>, Failure> {
        let failed = |error: String| Failure::internal(error);
        let sandbox = self.registry.manager.find(entry.id.as_str()).map_err(|error| failed(error.to_string()))?;
        let wanted = Arc::new(());
        let asked = Arc::downgrade(&wanted);
        let read = move || query.read(&sandbox.trail(), || asked.strong_count() > 0);
        let read = tokio::task::spawn_blocking(read).await.map_err(|error| failed(error.to_string()))?;
        drop(wanted);
        read.map_err(|error| failed(error.to_string()))
    }
}

impl LogsQuery {
    /// For as long as it `is_wanted`.
    fn read(&self, trail: &Trail, is_wanted: impl Fn() -> bool) -> Result<Vec<Value>, AuditError> {
        let limit = self.limit.unwrap_or(MAX_LINES).min(MAX_LINES);
        // A millisecond has many lines: those of the cursor's own are in the answer, whichever way it goes.
        let moment = |ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms));
        let own = self.cursor.and_then(|ms| Some(moment(ms)?..moment(ms.saturating_add(1))?));
        let backward = self.direction == Direction::Backward;
        let cursor = self.cursor.and_then(|ms| moment(ms.saturating_add(u64::from(backward))));
        let mut at = match cursor {
            Some(time) => Some(trail.first_since(time)?),
            None => None,
        };
        let mut found = Vec::new();
        let mut has_news = false;
        let (mut scanned, mut answered) = (0, 0);
        // No line of ours is worse than information.
        let limit = if self.level > Level::Info { 0 } else { limit };
        // An empty answer means that there is nothing, and one of the cursor's own moment that there is nothing else.
        while found.len() < limit && answered < MAX_ANSWER && (!has_news || scanned < MAX_SCANNED) && is_wanted() {
            let (text, next) = if backward { trail.read_before(at)? } else { trail.read_from(at.unwrap_or(0))? };
            if text.is_empty() {
                break;
            }
            scanned += text.len() as u64;
            at = Some(next);
            let text = String::from_utf8_lossy(&text);
            let mut lines = text.lines();
            while found.len() < limit && answered < MAX_ANSWER {
                let Some(line) = (if backward { lines.next_back() } else { lines.next() }) else { break };
                if let Some((time, entry)) = self.entry(line) {
                    answered += line.len();
                    found.push(entry);
                    has_news |= own.as_ref().is_none_or(|own| !own.contains(&time));
                }
            }
        }
        Ok(found)
    }

    /// A line as E2B's API has it, when it is one of those asked for. What is no line is for `audit verify` to find.
    fn entry(&self, line: &str) -> Option<(SystemTime, Value)> {
        let read: Line = serde_json::from_str(line).ok()?;
        let Value::Object(mut event) = serde_json::to_value(&read.event).ok()? else { return None };
        let Value::String(message) = event.remove("event")? else { return None };
        event.insert("seq".to_owned(), read.seq.into());
        let text = |value: Value| if let Value::String(text) = value { text } else { value.to_string() };
        let fields: BTreeMap<String, String> = event.into_iter().map(|(name, value)| (name, text(value))).collect();
        let has = |search: &String| message.contains(search) || fields.values().any(|field| field.contains(search));
        if !self.search.as_ref().is_none_or(has) {
            return None;
        }
        let entry =
            json!({ "timestamp": views::time(read.time), "message": message, "level": "info", "fields": fields });
        Some((read.time, entry))
    }
}
