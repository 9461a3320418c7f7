//! Small files that builds keep in a home: the layer of each state, and the content of cache mounts.
//! Losing one of them costs time and nothing else, so failures to write are ignored. What becomes
//! visible was complete before.

use crate::key::Key;
use sandboxvm_oci::Digest;
use serde::{Deserialize, Serialize};
use std::{
    fs::{DirBuilder, File},
    io::{self, Read, Seek},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Maximum size in bytes of the record of a layer.
const MAX_RECORD: u64 = 4096;

/// The directory with the files.
#[derive(Debug, Clone)]
pub(super) struct Kept(PathBuf);

/// The layer of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptLayer {
    /// Digest of the layer with gzip.
    pub(super) digest: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Digest of the plain archive.
    pub(super) diff_id: String,
    /// When its image was made, in seconds since the Unix epoch: an image from a known layer has the
    /// same time, and so the same digest.
    pub(super) created: u64,
}

impl Kept {
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        for name in ["layers", "caches"] {
            DirBuilder::new().recursive(true).mode(0o700).create(root.join(name))?;
        }
        Ok(Self(root))
    }

    /// Returns an empty file without a name, on the disk of the home.
    pub(super) fn scratch(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.0)
    }

    pub(super) fn layer(&self, key: Key) -> Option<KeptLayer> {
        let mut bytes = Vec::new();
        File::open(self.layer_path(key)).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn keep_layer(&self, key: Key, layer: &KeptLayer) {
        let write = |file: &mut File| serde_json::to_writer(file, layer).map_err(io::Error::from);
        let _ = self.replace(&self.layer_path(key), write);
    }

    pub(super) fn cache(&self, id: &str) -> Option<File> {
        File::open(self.cache_path(id)).ok()
    }

    pub(super) fn keep_cache(&self, id: &str, mut archive: File) {
        let copied = archive.rewind();
        let _ = copied.and_then(|()| self.replace(&self.cache_path(id), |file| io::copy(&mut archive, file).map(drop)));
    }

    fn replace(&self, path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        write(file.as_file_mut())?;
        file.persist(path).map(drop).map_err(|error| error.error)
    }

    fn layer_path(&self, key: Key) -> PathBuf {
        self.0.join("layers").join(format!("{key}.json"))
    }

    /// Returns a path that does not depend on what a Dockerfile may put into the ID.
    fn cache_path(&self, id: &str) -> PathBuf {
        self.0.join("caches").join(format!("{}.tar", Digest::of(id.as_bytes()).hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyBuilder;
    use std::io::Write;

    #[test]
    fn layers_and_caches_are_found_again() {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept::open(home.path().join("build")).unwrap();
        let key = KeyBuilder::new("test").finish();
        assert_eq!(kept.layer(key), None);
        let layer = KeptLayer { digest: "sha256:a".into(), size: 7, diff_id: "sha256:b".into(), created: 9 };
        kept.keep_layer(key, &layer);
        assert_eq!(kept.layer(key), Some(layer));
        let mut archive = kept.scratch().unwrap();
        archive.write_all(b"content").unwrap();
        kept.keep_cache("../../x", archive);
        let mut text = String::new();
        kept.cache("../../x").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(std::fs::read_dir(home.path().join("build")).unwrap().count(), 2);
    }
}
