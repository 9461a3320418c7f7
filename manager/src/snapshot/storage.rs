//! Measures the disk space of sandboxes and snapshots.

use crate::{
    create::ready_snapshot,
    manager::Manager,
    snapshot::{
        error::SnapshotError,
        lineage::{AGENT, IMAGE, TEMPLATE},
    },
    workspace,
};
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use std::{collections::HashSet, fs, os::unix::fs::MetadataExt, path::Path};

/// Unit of `st_blocks` in bytes (stat(2)).
const BLOCK: u64 = 512;

impl Manager {
    /// Returns the bytes that these sandboxes and snapshots use on the disk together. A file that
    /// several of them share counts once. Files that the home or the bundle has anyway (base image,
    /// agent disk and template) do not count. A sandbox or snapshot that was removed meanwhile
    /// counts as zero. `images` adds the ready snapshots of these container images, by digest.
    #[must_use]
    pub fn disk_usage(&self, sandboxes: &[SandboxId], snapshots: &[SandboxName], images: &[String]) -> u64 {
        let mut seen = HashSet::new();
        let sandboxes = sandboxes.iter().map(|id| self.home.sandbox(id));
        let snapshots = snapshots.iter().map(|name| self.home.snapshot(name));
        let ready = ready_snapshot::of_images(&self.home, images);
        sandboxes.chain(snapshots).chain(ready).map(|path| own_bytes(&path, &mut seen)).sum()
    }

    /// Removes the ready snapshots of these container images. The next machine of one of them boots, and makes another one.
    ///
    /// # Errors
    /// Fails if files cannot be removed.
    pub fn remove_ready_snapshots(&self, images: &[String]) -> Result<(), SnapshotError> {
        ready_snapshot::remove_of_images(&self.home, images)
    }
}

fn own_bytes(directory: &Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let stored = directory.join(workspace::DIRECTORY);
    let entries = [directory, &stored].into_iter().filter_map(|path| fs::read_dir(path).ok()).flatten().flatten();
    let own = entries.filter(|entry| ![TEMPLATE, IMAGE, AGENT].iter().any(|shared| entry.file_name() == *shared));
    // Metadata of the entry itself, because a symbolic link leads elsewhere.
    let files = own.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file);
    files.filter(|file| seen.insert((file.dev(), file.ino()))).map(|file| file.blocks() * BLOCK).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::tests::manager_with;

    #[test]
    fn shared_files_count_once_and_files_of_the_home_do_not() {
        let (_dir, manager) = manager_with(&["abcdefgh", "hgfedcba"]);
        let ids = ["abcdefgh", "hgfedcba"].map(|id| SandboxId::try_from(id.to_owned()).unwrap());
        let snapshot = SandboxName::try_from("kept".to_owned()).unwrap();
        let before = manager.disk_usage(&ids, std::slice::from_ref(&snapshot), &[]);
        let first = manager.home.sandbox(&ids[0]);
        fs::write(first.join("disk.0"), vec![1; 1 << 20]).unwrap();
        let with_disk = manager.disk_usage(&ids, std::slice::from_ref(&snapshot), &[]);
        assert!((1 << 20..2 << 20).contains(&(with_disk - before)), "{before} {with_disk}");
        fs::create_dir(manager.home.snapshot(&snapshot)).unwrap();
        for other in [manager.home.sandbox(&ids[1]), manager.home.snapshot(&snapshot)] {
            fs::hard_link(first.join("disk.0"), other.join("disk.7")).unwrap();
            fs::write(other.join(TEMPLATE), vec![1; 1 << 20]).unwrap();
        }
        assert_eq!(manager.disk_usage(&ids, std::slice::from_ref(&snapshot), &[]), with_disk);
        let gone = SandboxId::try_from("zzzzzzzz".to_owned()).unwrap();
        assert_eq!(manager.disk_usage(&[gone], &[], &[]), 0);
    }
}
