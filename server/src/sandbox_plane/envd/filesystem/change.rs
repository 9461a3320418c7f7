//! Changes in a directory as clients read them.

use super::entry::EntryInfo;
use crate::sandbox_plane::envd::connect::text;
use sandboxvm_manager::{ChangeKind, Observation};
use serde::Serialize;

/// `filesystem.FilesystemEvent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Box<EntryInfo>>,
}

impl Change {
    /// Nothing where clients have no word for it.
    pub(super) fn of(Observation { change, details }: &Observation) -> Option<Self> {
        let kind = match change.kind {
            ChangeKind::Created => "EVENT_TYPE_CREATE",
            ChangeKind::Written => "EVENT_TYPE_WRITE",
            ChangeKind::Removed => "EVENT_TYPE_REMOVE",
            ChangeKind::Renamed => "EVENT_TYPE_RENAME",
            ChangeKind::AttributesChanged => "EVENT_TYPE_CHMOD",
            ChangeKind::Missed => return None,
        };
        let name = change.path.as_ref().map_or_else(|| ".".to_owned(), text);
        Some(Self { name, kind, entry: details.as_deref().map(|details| Box::new(EntryInfo::from(details))) })
    }

    #[cfg(test)]
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.name.len() + self.entry.as_ref().map_or(0, |entry| entry.bytes())
    }
}
