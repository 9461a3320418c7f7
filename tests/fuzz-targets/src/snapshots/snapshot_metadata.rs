//! The records that the manager reads from a home: the manifest of a snapshot and the record of a
//! sandbox, as untrusted JSON. A record that can be read must be the same after it was written and
//! read again.

use crate::input::Input;
use sandboxvm_manager::{SandboxRecord, SnapshotManifest};
use sandboxvm_protocol::vmm::VmStatus;
use serde::{Serialize, de::DeserializeOwned};

/// Input: the kind of record, then its JSON.
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
    let written = serde_json::to_vec(&value).expect("the value came from JSON");
    let read: T = serde_json::from_slice(&written).expect("the JSON was just written");
    assert_eq!(serde_json::to_vec(&read).expect("the value came from JSON"), written);
}
