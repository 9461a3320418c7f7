//! Which references lead to which images: one small file, replaced as a whole under the lock of the
//! store.

use super::{Store, StoreError, error::Result};
use crate::{digest::Digest, reference::Reference};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Read},
    time::{SystemTime, UNIX_EPOCH},
};

/// Maximum size in bytes of the file. A tag has at most about 1 KiB.
const MAX_FILE: u64 = 32 << 20;

/// A reference that the store knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// The complete reference.
    pub reference: String,
    /// Digest of the manifest of the image.
    pub manifest: Digest,
    /// Digest that the source has for the reference, which is that of an index if it has the image
    /// for several platforms.
    pub source: Digest,
    /// When the reference received this image, in seconds since the Unix epoch.
    pub since: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    tags: Vec<Tag>,
}

impl Store {
    /// Returns all tags, sorted by reference.
    ///
    /// # Errors
    /// Fails if they cannot be read.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        let path = self.root.join("tags.json");
        let mut bytes = Vec::new();
        match fs::File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
        let read: std::result::Result<File, _> = serde_json::from_slice(&bytes);
        read.map(|file| file.tags).map_err(|error| StoreError::Corrupt { path, problem: error.to_string() })
    }

    /// Points a reference at an image. The caller holds the image.
    pub(crate) fn set_tag(&self, reference: &Reference, manifest: Digest, source: Digest) -> Result<()> {
        let _lock = self.lock()?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let tag = Tag { reference: reference.to_string(), manifest, source, since };
        let mut tags = self.tags()?;
        match tags.binary_search_by(|other| other.reference.cmp(&tag.reference)) {
            // A pull that changes nothing writes nothing.
            Ok(at) if (tags[at].manifest, tags[at].source) == (manifest, source) => return Ok(()),
            Ok(at) => tags[at] = tag,
            Err(_) if tags.len() >= self.limits.tags => return Err(StoreError::TooManyTags(tags.len())),
            Err(at) => tags.insert(at, tag),
        }
        self.write_tags(tags)
    }

    /// Removes the tags for which `is_removed` returns true, and returns them. Blobs stay until
    /// [`Self::collect`].
    ///
    /// # Errors
    /// Fails if the tags cannot be read or written.
    pub fn remove_tags(&self, is_removed: impl Fn(&Tag) -> bool) -> Result<Vec<Tag>> {
        let _lock = self.lock()?;
        let (removed, kept): (Vec<_>, Vec<_>) = self.tags()?.into_iter().partition(is_removed);
        if !removed.is_empty() {
            self.write_tags(kept)?;
        }
        Ok(removed)
    }

    /// Removes the tag of an image and returns it, or no tag if it has none. Returns its tags if there
    /// are several.
    pub(crate) fn remove_only_tag(&self, manifest: Digest) -> Result<std::result::Result<Vec<Tag>, Vec<Tag>>> {
        let _lock = self.lock()?;
        let (removed, kept): (Vec<_>, Vec<_>) = self.tags()?.into_iter().partition(|tag| tag.manifest == manifest);
        if removed.len() > 1 {
            return Ok(Err(removed));
        }
        if !removed.is_empty() {
            self.write_tags(kept)?;
        }
        Ok(Ok(removed))
    }

    fn write_tags(&self, tags: Vec<Tag>) -> Result<()> {
        // Two texts and some numbers always serialise.
        let bytes = serde_json::to_vec_pretty(&File { tags })
            .map_err(|error| StoreError::Corrupt { path: self.root.join("tags.json"), problem: error.to_string() })?;
        self.replace(&self.root.join("tags.json"), &bytes)
    }
}
