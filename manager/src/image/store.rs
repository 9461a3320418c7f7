//! The images of a home. Adds to `sandboxvm_oci` what it does not know: which images are in use.

use super::error::ImageError;
use crate::manager::Manager;
use sandboxvm_images::bundle::{Bundle, Part};
use sandboxvm_layers::process::Unpacker;
use sandboxvm_oci::{
    Images, Limits,
    registry::RegistryOptions,
    store::{Collected, Tag},
};

/// The images of a home.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(super) manager: Manager,
    pub(super) images: Images,
    bundle: Bundle,
}

impl Manager {
    /// Opens the images of this home, which are in `images/`. `registries` says how registries are
    /// reached; the layer process is that of `bundle`.
    ///
    /// # Errors
    /// When the directory cannot be created, or has the format of another version.
    pub fn images(&self, bundle: &Bundle, registries: RegistryOptions) -> Result<ImageStore, ImageError> {
        let images = Images::open(self.home.images(), Limits::default(), registries)?;
        Ok(ImageStore { manager: self.clone(), images, bundle: bundle.clone() })
    }
}

impl ImageStore {
    /// Returns the images: to pull, push, load, save, tag, list and inspect them.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Removes a reference, or the reference of an image whose manifest has this digest, and then deletes what
    /// neither another reference nor a sandbox or snapshot needs. Blocks the thread.
    ///
    /// # Errors
    /// When no image has the reference, or a file cannot be deleted.
    pub fn remove(&self, image: &str) -> Result<(Vec<Tag>, Collected), ImageError> {
        let removed = self.images.untag(image)?;
        Ok((removed, self.collect()?))
    }

    /// Removes the references of all images from which no sandbox or snapshot was made. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_unused(&self) -> Result<Vec<Tag>, ImageError> {
        let in_use = self.manager.images_in_use()?;
        Ok(self.images.store().remove_tags(|tag| !in_use.contains(&tag.manifest))?)
    }

    /// Deletes what no reference, sandbox, snapshot or running process needs, and downloads that no
    /// process continues. Blocks the thread.
    ///
    /// # Errors
    /// When a file cannot be read or deleted.
    pub fn prune(&self) -> Result<Collected, ImageError> {
        let (images, partial) = (self.collect()?, self.images.store().collect_partial()?);
        Ok(Collected { files: images.files + partial.files, bytes: images.bytes.saturating_add(partial.bytes) })
    }

    /// Deletes what no reference, sandbox, snapshot or running process needs. What is in use is found out
    /// under the lock of the store: a sandbox that is being created holds its image until its record names it.
    fn collect(&self) -> Result<Collected, ImageError> {
        Ok(self.images.store().collect_except(|| Ok(self.manager.images_in_use()?))?)
    }

    /// Returns the layer process of the bundle.
    pub(super) fn unpacker(&self) -> Result<Unpacker, ImageError> {
        self.bundle.open_part(Part::Layers)?;
        Ok(Unpacker::new(self.bundle.layers.clone()))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_image_that_is_pulled_fits_the_layer_process() {
        assert!(sandboxvm_oci::Limits::default().layers <= sandboxvm_layers::MAX_LAYERS);
    }
}
