//! Files of snapshots and disks that an attacker wrote.

mod disk_layers;
mod snapshot_metadata;
mod state_file;

pub use disk_layers::disk_layers;
pub use snapshot_metadata::snapshot_metadata;
pub use state_file::{example as state_file_example, state_file};
