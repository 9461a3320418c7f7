//! Volumes of the server: directories of the home that several sandboxes, and clients of the server, write at the
//! same time. What is in them is served by confined processes alone; nothing here opens a file of a volume.
//!
//! ```text
//! id       what a volume is called, and where it is
//! store    makes and removes the directory
//! content  starts a process that serves one request of a client
//! ```
//! They have nothing to do with the volumes of `crate::volumes`, which are disks.

mod content;
mod id;
mod store;

pub use content::ContentProcess;
pub(crate) use content::clear;
pub use id::{SharedVolumeId, SharedVolumeIdError};
pub use sandboxvm_share::content as volume_content;
pub use store::SharedVolumeError;
