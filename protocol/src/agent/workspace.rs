//! A workspace: files that a machine has in slots, mounted in the guest below an overlay that takes
//! the writes. May not name a path of the host.

use super::files::FilePath;
use crate::{capped, machine::SlotNumber};
use serde::{Deserialize, Serialize};

/// Maximum number of slots of one workspace.
pub const MAX_SLOTS: usize = SlotNumber::COUNT as usize;

/// A request to mount a workspace. The changes are on the sandbox's disk, in a directory that the
/// lowest slot names: mounted again, also after a boot, the workspace has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceMount {
    /// Slots with an EROFS each, bottom up. At least one.
    #[serde(with = "capped::List::<MAX_SLOTS>")]
    pub slots: Vec<SlotNumber>,
    /// Absolute path of the directory, which is created if it is missing.
    pub at: FilePath,
    /// User ID of the directory itself, which has mode 0755.
    pub uid: u32,
    /// Group ID of the directory itself.
    pub gid: u32,
}
