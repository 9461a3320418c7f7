//! Which images the sandboxes and snapshots of a home were made from. Reads their records only.

use crate::{home::directory::DirectoryError, image_defaults::ImageDefaults, manager::Manager};
use sandboxvm_oci::Digest;
use std::collections::BTreeSet;

impl Manager {
    /// Returns the manifests of all images that a sandbox or a snapshot was made from. Of one whose
    /// record cannot be read, the image is unknown, and cannot be committed to either.
    pub(super) fn images_in_use(&self) -> Result<Vec<Digest>, DirectoryError> {
        let mut digests = BTreeSet::new();
        let mut note = |defaults: Option<&ImageDefaults>| {
            digests.extend(defaults.and_then(|defaults| defaults.digest.parse::<Digest>().ok()));
        };
        for id in self.ids()? {
            if let Ok(Some(sandbox)) = self.open_sandbox(&id) {
                note(sandbox.record.image_defaults.as_ref());
            }
        }
        for manifest in self.snapshots()? {
            note(manifest.image_defaults.as_ref());
        }
        Ok(digests.into_iter().collect())
    }
}
