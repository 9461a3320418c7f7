//! What the record of a sandbox, and the manifest of a snapshot, say of its workspace.

use super::spec::WorkspaceSpec;
use sandboxvm_protocol::{agent::workspace::MAX_SLOTS, machine::SlotNumber};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Returns the name of the file in a slot, in the directory of a sandbox or snapshot.
pub(super) fn slot_name(slot: SlotNumber) -> String {
    format!("slot.{slot}")
}

/// The workspace of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// The directory of the host that it was made from, an absolute path.
    pub origin: PathBuf,
    /// Where it is mounted in the guest, an absolute path.
    pub at: String,
    /// User ID of that directory in the guest.
    pub uid: u32,
    /// Group ID of that directory in the guest.
    pub gid: u32,
    /// Names of the files in the slots, bottom up, in the directory of the sandbox.
    pub slots: Vec<String>,
}

impl WorkspaceRecord {
    pub(crate) fn of(spec: &WorkspaceSpec) -> Self {
        let (uid, gid) = spec.owner;
        let slots = SlotNumber::all().take(spec.slots.len()).map(slot_name).collect();
        Self { origin: spec.origin.clone(), at: spec.at.clone(), uid, gid, slots }
    }

    /// Returns the workspace of a machine that becomes a ready snapshot: `slots` empty files, which are
    /// never mounted.
    pub(crate) fn empty(slots: usize) -> Self {
        let slots = SlotNumber::all().take(slots).map(slot_name).collect();
        Self { origin: Path::new("/").to_owned(), at: "/".to_owned(), uid: 0, gid: 0, slots }
    }

    /// Returns the slots, bottom up.
    pub(crate) fn numbers(&self) -> Vec<SlotNumber> {
        SlotNumber::all().take(self.slots.len()).collect()
    }

    /// Returns true if its files have the names that files of slots have.
    pub(crate) fn is_valid(&self) -> bool {
        let expected = SlotNumber::all().map(slot_name);
        (1..=MAX_SLOTS).contains(&self.slots.len()) && self.slots.iter().zip(expected).all(|(name, slot)| *name == slot)
    }
}
