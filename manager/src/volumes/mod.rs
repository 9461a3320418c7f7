//! Named volumes: file systems that outlive the sandboxes in which they are mounted, each a sparse file in
//! `volumes/` of the home. May not mount one, and may not read more of a file that a guest wrote than one
//! number of its beginning.
//!
//! ```text
//! name   names of volumes             store   making, listing and removing them
//! users  which sandboxes have one     open    opening them for a machine, with their lock
//! ```
//! The lock (flock(2)) of the file itself says who uses a volume: its VMM has the open file that the manager
//! locked, exclusively to write and shared to read. So the lock ends with the VMM, however it ends.

pub(crate) mod name;
pub(crate) mod open;
mod store;
mod users;

pub use name::{VolumeName, VolumeNameError};
pub use store::{Volume, VolumeError};
pub(crate) use store::{ensure, sweep};
pub use users::VolumeUser;
