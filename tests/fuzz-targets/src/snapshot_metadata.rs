//! The records that the manager reads back from a home: a snapshot's manifest and a sandbox's record, as JSON from
//! anybody. What must hold: what is understood is understood again as it is written.

use crate::input::Input;
use sandboxvm_manager::{SandboxRecord, SnapshotManifest};
use sandboxvm_protocol::vmm::VmStatus;
use serde::{Serialize, de::DeserializeOwned};

/// Input: which record, then its JSON.
pub fn snapshot_metadata(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte().map(|kind| kind % 3) {
        Some(0) => again::<SnapshotManifest>(input.rest()),
        Some(1) => again::<SandboxRecord>(input.rest()),
        Some(_) => again::<VmStatus>(input.rest()),
        None => {}
    }
}

fn again<T: Serialize + DeserializeOwned>(json: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(json) else { return };
    let written = serde_json::to_vec(&value).expect("it came out of JSON");
    let read: T = serde_json::from_slice(&written).expect("it was just written");
    assert_eq!(serde_json::to_vec(&read).expect("as above"), written);
}
