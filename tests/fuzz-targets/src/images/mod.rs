//! Images, layers and Dockerfiles of strangers.

mod dockerfile;
mod image_archive;
mod image_documents;
mod image_metadata;
mod layer_archive;
mod layer_changes;

pub use dockerfile::dockerfile;
pub use image_archive::image_archive;
pub use image_documents::{image_configuration, image_manifest, image_reference};
pub use image_metadata::image_metadata;
pub use layer_archive::layer_archive;
pub use layer_changes::layer_changes;
