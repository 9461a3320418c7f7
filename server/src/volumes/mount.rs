//! Volumes of a sandbox: by which names a client asks for them, and what the record of the sandbox has.

use sandboxvm_manager::SharedVolumeId;
use serde::{Deserialize, Serialize};

/// A volume that a client wants mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedMount {
    /// Name of the volume.
    pub(crate) name: String,
    /// Where it is mounted.
    pub(crate) path: String,
}

/// A volume of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountedVolume {
    pub(crate) id: SharedVolumeId,
    pub(crate) name: String,
    pub(crate) path: String,
}
