//! Container images as the disks of sandboxes. Owns which images a home has in use, and the disk that
//! is made of an image; pulling, naming and deleting images belong to the crate `sandboxvm_oci`, which
//! [`ImageStore::images`] returns, and reading their layers to the confined process of
//! `sandboxvm_layers`.
//!
//! ```text
//! images/ in the home ── layers ──> layer process ── EROFS ──> images/disks/<digest>.erofs
//! ```
//! Each sandbox has a link to the file that it boots, so removing an image never breaks one. The layers
//! themselves are kept as long as a sandbox or snapshot of the image exists, because `commit` adds its
//! layer to them. May not interpret what is in an image.

mod bootable;
mod commit;
mod environment;
mod error;
mod in_use;
mod main_process;
mod store;

pub use bootable::{BootableImage, UnpackProgress};
pub use commit::{CommitError, CommitSpec};
pub use environment::over_environment_of_image;
pub use error::ImageError;
pub use main_process::{SystemdMode, main_process};
pub use store::ImageStore;
