//! The workspace of a sandbox: a directory of the host as read-only disks in slots, mounted in the
//! guest below an overlay that takes the writes. May not read or write the directory of the host:
//! making the disks, and taking changes over, is for callers.
//!
//! ```text
//! spec     what a new sandbox's workspace is made of           record   what config.json says of it
//! files    its files in the directories of sandboxes and snapshots
//! mounting tells the agent to mount it                         changes  the layer of what changed
//! ```

mod changes;
pub(crate) mod files;
pub(crate) mod mounting;
mod record;
mod spec;

/// The journal of changes that are being applied, in the directory of a sandbox. The crate that applies
/// them writes and reads it; here it only says that the sandbox must not be swept.
pub const APPLY_JOURNAL: &str = "apply.journal";

pub(crate) use changes::{DIRECTORY, are_stored, forget};
pub use changes::{StoreError, StoredChanges};
pub use record::WorkspaceRecord;
pub use spec::{WorkspaceError, WorkspaceSpec};

#[cfg(test)]
pub(crate) use spec::tests;
