//! Container images as the OCI describes them: from registries and archives into a
//! content-addressed store.
//!
//! ```text
//! registry ──┐                                ┌──> disks/ (built by a function of the caller)
//! archive  ──┼─> verified blobs ──> store ────┼──> archive
//! layout   ──┘                                └──> registry
//! ```
//! The crate knows nothing of sandboxes, machines or file systems. Everything that a registry, an
//! archive or a layout holds is hostile: each size is limited before memory or disk is used for it,
//! and no blob receives its final name before its digest was verified. The library reads no
//! environment variable and writes nothing to a terminal: the caller passes paths, and receives
//! progress through [`Progress`].

mod compose;
pub mod config;
pub mod credentials;
mod digest;
mod images;
mod limits;
pub mod manifest;
mod platform;
mod progress;
mod reference;
pub mod registry;
pub mod sources;
pub mod store;

pub use compose::{Addition, ComposeError, Composition};
pub use digest::{Digest, DigestError};
pub use images::{Error, ImageDetails, ImageSummary, Images, PullOptions, Pulled, PushOptions};
pub use limits::Limits;
pub use progress::{Event, Progress, Silent};
pub use reference::{Reference, ReferenceError};
