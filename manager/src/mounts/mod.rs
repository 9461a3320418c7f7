//! What a sandbox has mounted beside its root: volumes, file systems in memory, directories of the host.
//! May not know what a volume or a directory contains.
//!
//! ```text
//! spec       what is mounted where, also in the record of a sandbox      path   where in the guest
//! share_root a directory of the host, open
//! share_copy the copy of such a directory that a fork has
//! mounting   tells the agent to mount it
//! ```

pub(crate) mod mounting;
mod path;
pub(crate) mod share_copy;
pub(crate) mod share_root;
pub(crate) mod spec;

pub use path::{MountPath, MountPathError};
pub use sandboxvm_share::Limits as ContentLimits;
pub use share_root::ShareRootError;
pub use spec::{MountSource, MountSpec, MountedVolume, Mounts, MountsError, Share, Tmpfs};
