//! The layers of a container image as one read-only EROFS file, which a guest mounts as its root.
//!
//! ```text
//! layers ── decompress, hash ──> archive entries ──> content ──> image
//!                                        └──> tree of all layers ──> image, behind the content
//! ```
//! [`list`] writes the names of that tree instead of the image. One pass: the content of files goes to the image while its layer is read, and names and metadata
//! stay in memory until the last layer. Layers are hostile: everything is bounded ([`Limits`]), and
//! [`unpack`] is meant to run in a process that has nothing but its descriptors. The crate knows
//! nothing of registries, sandboxes or paths of the host.

mod erofs;
mod format;
mod image_writer;
mod limits;
mod listing;
mod names;
mod output;
pub mod process;
mod stream;
mod tree;
mod unpack;

pub use erofs::attributes::AttributeError;
pub use format::{Format, FormatError};
pub use image_writer::{ImageError, ImageWriter, NewInode, NewKind, StoredContent};
pub use limits::{Exceeded, Limits, MAX_LAYERS};
pub use names::{Meaning, NameError, components, meaning};
pub use output::OutputError;
pub use tree::TreeError;
pub use unpack::{DiffId, EntryError, Layer, LayerError, Progress, Summary, UnpackError, list, unpack};
