//! Small files that builds keep in a home: the layer of each state, and the content of cache mounts.
//! Losing one of them costs time and nothing else, so failures to write are ignored. What becomes
//! visible was complete before.

use crate::key::Key;
use rustix::fs::{FlockOperation, flock};
use sandboxvm_oci::Digest;
use serde::{Deserialize, Serialize};
use std::{
    fs::{DirBuilder, File},
    io::{self, Read, Seek},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Maximum size in bytes of the record of a layer.
const MAX_RECORD: u64 = 4096;

/// Maximum number of records of layers.
const MAX_LAYERS: usize = 1000;
/// Maximum size in bytes of the content of all cache mounts.
const MAX_CACHES: u64 = 10 << 30;
/// The directory with the files.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    root: PathBuf,
    max_layers: usize,
    max_caches: u64,
}

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
    /// Number of layers below it that steps made without a machine.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) leading: usize,
}

/// Which layer a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// Everything in which the disk of a state differs from the image that its machine started from.
    State,
    /// What one step changed that was executed without a machine.
    Step,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Kept {
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        for name in ["layers", "caches"] {
            DirBuilder::new().recursive(true).mode(0o700).create(root.join(name))?;
        }
        let kept = Self { root, max_layers: MAX_LAYERS, max_caches: MAX_CACHES };
        kept.remove_abandoned();
        Ok(kept)
    }

    /// Returns an empty file without a name, on the disk of the home.
    pub(super) fn scratch(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.root)
    }

    pub(super) fn layer(&self, record: Record, key: Key) -> Option<KeptLayer> {
        let mut bytes = Vec::new();
        File::open(self.layer_path(record, key)).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Keeps the record of a layer. The oldest ones above the maximum are removed.
    pub(super) fn keep_layer(&self, record: Record, key: Key, layer: &KeptLayer) {
        let path = self.layer_path(record, key);
        let write = |file: &mut File| serde_json::to_writer(file, layer).map_err(io::Error::from);
        if self.replace(&path, write).is_ok() {
            let others = by_age(&self.root.join("layers"), &path);
            let excess = (others.len() + 1).saturating_sub(self.max_layers);
            others.iter().take(excess).for_each(|other| other.remove());
        }
    }

    pub(super) fn cache(&self, id: &str) -> Option<File> {
        File::open(self.cache_path(id)).ok()
    }

    /// Replaces the content of a cache. The oldest ones are removed so that all together stay within
    /// the maximum. Returns false if it was not kept.
    pub(super) fn keep_cache(&self, id: &str, mut archive: File) -> bool {
        let path = self.cache_path(id);
        let kept = archive.metadata().and_then(|about| {
            let Some(mut left) = self.max_caches.checked_sub(about.len()) else { return Ok(false) };
            // The newest ones stay.
            for other in by_age(&self.root.join("caches"), &path).iter().rev() {
                match left.checked_sub(other.size) {
                    Some(rest) => left = rest,
                    None => {
                        left = 0;
                        other.remove();
                    }
                }
            }
            archive.rewind()?;
            self.replace(&path, |file| io::copy(&mut archive, file).map(drop))?;
            Ok(true)
        });
        kept.unwrap_or(false)
    }

    /// Writes a file that becomes visible, even after a crash of the host, only as a whole.
    fn replace(&self, path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        self.remove_abandoned();
        let mut file = tempfile::NamedTempFile::new_in(&self.root)?;
        // Until the end of this process. Another one that removes the file just before makes this one fail.
        let _ = flock(file.as_file(), FlockOperation::NonBlockingLockExclusive);
        write(file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|error| error.error)
    }

    /// Removes files that builds were writing which were killed: no process has their lock.
    fn remove_abandoned(&self) {
        for old in by_age(&self.root, Path::new("")) {
            let lock = |file: File| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if File::open(&old.path).is_ok_and(lock) {
                old.remove();
            }
        }
    }

    fn layer_path(&self, record: Record, key: Key) -> PathBuf {
        let kind = if record == Record::Step { "step.json" } else { "json" };
        self.root.join("layers").join(format!("{key}.{kind}"))
    }

    /// Returns a path that does not depend on what a Dockerfile may put into the ID.
    fn cache_path(&self, id: &str) -> PathBuf {
        self.root.join("caches").join(format!("{}.tar", Digest::of(id.as_bytes()).hex()))
    }
}

/// A file of the directory.
struct Old {
    modified: SystemTime,
    size: u64,
    path: PathBuf,
}

impl Old {
    fn remove(&self) {
        // Another build may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Returns the regular files of a directory but one, the oldest first.
fn by_age(directory: &Path, except: &Path) -> Vec<Old> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let old = entries.filter_map(|entry| {
        let (about, path) = (entry.metadata().ok()?, entry.path());
        let is_old = about.is_file() && path != except;
        is_old.then_some(Old { modified: about.modified().ok()?, size: about.len(), path })
    });
    let mut old: Vec<_> = old.collect();
    old.sort_by(|one, other| (one.modified, &one.path).cmp(&(other.modified, &other.path)));
    old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyBuilder;
    use std::{io::Write, time::Duration};

    #[test]
    fn layers_and_caches_are_found_again() {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept::open(home.path().join("build")).unwrap();
        let key = KeyBuilder::new("test").finish();
        assert_eq!(kept.layer(Record::State, key), None);
        let layer =
            KeptLayer { digest: "sha256:a".into(), size: 7, diff_id: "sha256:b".into(), created: 9, leading: 0 };
        kept.keep_layer(Record::State, key, &layer);
        assert_eq!(kept.layer(Record::State, key), Some(layer));
        assert_eq!(kept.layer(Record::Step, key), None);
        let mut archive = kept.scratch().unwrap();
        archive.write_all(b"content").unwrap();
        assert!(kept.keep_cache("../../x", archive));
        let mut text = String::new();
        kept.cache("../../x").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(std::fs::read_dir(home.path().join("build")).unwrap().count(), 2);
    }

    fn keep(kept: &Kept, id: &str, size: u64, age: u64) -> bool {
        let archive = kept.scratch().unwrap();
        archive.set_len(size).unwrap();
        let is_kept = kept.keep_cache(id, archive);
        let made = SystemTime::now() - Duration::from_secs(age);
        is_kept && File::open(kept.cache_path(id)).unwrap().set_modified(made).is_ok()
    }

    #[test]
    fn oldest_caches_make_room_for_new_ones() {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept { max_caches: 100, ..Kept::open(home.path().join("build")).unwrap() };
        assert!(keep(&kept, "old", 40, 30) && keep(&kept, "new", 40, 20));
        // It replaces itself.
        assert!(keep(&kept, "old", 60, 10));
        let has = |id: &str| kept.cache(id).is_some();
        assert!(has("old") && has("new"));
        assert!(keep(&kept, "third", 30, 0));
        assert!((has("old"), has("new"), has("third")) == (true, false, true));
        assert!(!keep(&kept, "large", 101, 0) && has("old") && has("third"));
    }

    #[test]
    fn oldest_records_of_layers_and_abandoned_files_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept { max_layers: 2, ..Kept::open(home.path().join("build")).unwrap() };
        let left = home.path().join("build/.tmpleft");
        let writing = home.path().join("build/.tmpnew");
        File::create(&left).unwrap();
        let writer = File::create(&writing).unwrap();
        flock(&writer, FlockOperation::NonBlockingLockExclusive).unwrap();
        let layer =
            KeptLayer { digest: "sha256:a".into(), size: 7, diff_id: "sha256:b".into(), created: 9, leading: 0 };
        let keys = ["a", "b", "c"].map(|name| KeyBuilder::new(name).finish());
        for (key, age) in keys.iter().zip([30, 20, 10]) {
            kept.keep_layer(Record::State, *key, &layer);
            let made = SystemTime::now() - Duration::from_secs(age);
            File::open(kept.layer_path(Record::State, *key)).unwrap().set_modified(made).unwrap();
        }
        assert_eq!(keys.map(|key| kept.layer(Record::State, key).is_some()), [false, true, true]);
        assert_eq!((left.exists(), writing.exists()), (false, true));
    }
}
