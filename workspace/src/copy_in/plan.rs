//! What a copy has to write: a new lowest layer with all files, or a layer above it with what changed,
//! or nothing. Owns this decision; it writes nothing.

use super::{cache::Previous, error::CopyInError, image, scan::Scan};
use crate::{
    beneath::{Root, split},
    index::{Content, Entry, Kind},
};
use rustix::fs::FileType;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The files of a project, and which of them a layer needs.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) entries: BTreeMap<Vec<u8>, Entry>,
    /// Files whose content is not in the cache.
    pub(super) fresh: BTreeSet<Vec<u8>>,
    /// A file was read to find out whether it has changed.
    pub(super) has_read: bool,
}

impl Plan {
    /// Takes from the last copy what has not changed.
    pub(super) fn new(root: &Root, scan: &Scan, previous: Option<&Previous>) -> Result<Self, CopyInError> {
        let mut plan = Self::default();
        for (path, found) in &scan.found {
            let about = &found.about;
            let kind = if about.kind == FileType::RegularFile {
                plan.content(root, path, found, previous)?
            } else {
                image::plain_kind(about.kind, found.target.as_ref())
            };
            let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { about.mode & 0o1777 };
            let (modified, changed, inode) = (about.modified, about.changed, about.inode);
            plan.entries.insert(path.clone(), Entry { kind, mode, modified, changed, inode });
        }
        Ok(plan)
    }

    fn content(
        &mut self,
        root: &Root,
        path: &[u8],
        found: &super::scan::Found,
        previous: Option<&Previous>,
    ) -> Result<Kind, CopyInError> {
        let about = &found.about;
        let index = previous.map(|previous| &previous.index);
        if let Some(entry) = index.and_then(|index| index.unchanged(path, about)) {
            return Ok(entry.kind.clone());
        }
        // A file that was only touched needs no place in a new layer.
        if let Some(Kind::File(content)) = index.and_then(|index| index.entries.get(path)).map(|entry| &entry.kind)
            && content.size == about.size
        {
            self.has_read = true;
            let found = image::digest(root, path).map_err(|errno| CopyInError::File {
                step: "read",
                path: path.to_vec(),
                error: errno.into(),
            })?;
            if found == Some((content.digest, content.size)) {
                return Ok(Kind::File(*content));
            }
        }
        self.fresh.insert(path.to_vec());
        Ok(Kind::File(Content { size: about.size, digest: [0; 32], layer: 0, offset: 0 }))
    }

    /// Returns true if the guest would see the same files as after the last copy.
    pub(super) fn is_same_for_guest(&self, previous: &Previous) -> bool {
        self.fresh.is_empty()
            && self.entries.len() == previous.index.entries.len()
            && self
                .entries
                .iter()
                .zip(&previous.index.entries)
                .all(|((path, entry), (other_path, other))| path == other_path && entry.is_same_for_guest(other))
    }

    /// Returns the files that the lowest layer does not have like this, and their size in bytes.
    pub(super) fn changed<'a>(&'a self, previous: &Previous) -> (HashSet<&'a [u8]>, u64) {
        let (mut changed, mut bytes) = (HashSet::new(), 0_u64);
        for (path, entry) in &self.entries {
            let base = previous.base.entries.get(path);
            if self.fresh.contains(path) || !base.is_some_and(|base| base.is_same_for_guest(entry)) {
                changed.insert(&path[..]);
                if let Kind::File(content) = &entry.kind {
                    bytes = bytes.saturating_add(content.size);
                }
            }
        }
        (changed, bytes)
    }

    /// Returns what the lowest layer has and the project has not: the top of each removed tree.
    pub(super) fn hidden<'a>(&self, previous: &'a Previous) -> Vec<&'a [u8]> {
        let base = &previous.base.entries;
        let is_directory =
            |entries: &BTreeMap<_, Entry>, path: &[u8]| entries.get(path).is_some_and(|at| at.kind == Kind::Directory);
        let is_top = |path: &&[u8]| {
            let (above, _) = split(path);
            !self.entries.contains_key(*path)
                && (above.is_empty() || is_directory(base, above) && is_directory(&self.entries, above))
        };
        base.keys().map(|path| &path[..]).filter(is_top).collect()
    }
}
