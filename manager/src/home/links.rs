//! Files that several directories of a home share by hard links: a sandbox and each of its
//! snapshots have all files that they need, so that removing one never breaks another. Such a file
//! may never be written again, except by the one VMM that it belongs to.

use crate::home::directory::{DirectoryError, SandboxDirectory};
use rustix::fs::{AtFlags, CWD, OFlags};
use std::{fs::File, io::Write, os::fd::AsRawFd};

impl SandboxDirectory {
    /// Links `file`, which may be anywhere on this file system, into this directory as `name`.
    pub(crate) fn link(&self, file: &File, name: &str) -> Result<(), DirectoryError> {
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, &source, self.fd(), name, AtFlags::SYMLINK_FOLLOW)
            .map_err(|error| self.error("link", name, error))
    }

    /// Like [`Self::link`], for a file of another directory.
    pub(crate) fn link_from(&self, from: &Self, from_name: &str, name: &str) -> Result<(), DirectoryError> {
        rustix::fs::linkat(from.fd(), from_name, self.fd(), name, AtFlags::empty())
            .map_err(|error| self.error("link", name, error))
    }

    /// Removes a name. Succeeds if it does not exist.
    pub(crate) fn unlink(&self, name: &str) -> Result<(), DirectoryError> {
        match rustix::fs::unlinkat(self.fd(), name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(self.error("remove", name, error)),
        }
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), DirectoryError> {
        rustix::fs::renameat(self.fd(), from, self.fd(), to).map_err(|error| self.error("rename", from, error))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        rustix::fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Replaces the content of a small file in one step, durably.
    pub(crate) fn replace(&self, name: &str, content: &[u8]) -> Result<(), DirectoryError> {
        let beside = format!(".{name}.new");
        self.unlink(&beside)?;
        let written = self.create_file(&beside).and_then(|mut file| {
            file.write_all(content).and_then(|()| file.sync_data()).map_err(|e| self.error("write", name, e))
        });
        if let Err(error) = written.and_then(|()| self.rename(&beside, name)) {
            // The first error is the one to report.
            let _ = self.unlink(&beside);
            return Err(error);
        }
        self.sync()
    }

    /// Returns the names of all entries.
    pub(crate) fn names(&self) -> Result<Vec<String>, DirectoryError> {
        let fail = |error| self.error("list", "", error);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.fd()).map_err(fail)? {
            if let Ok(name) = entry.map_err(fail)?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Makes the entries of the directory durable.
    pub(crate) fn sync(&self) -> Result<(), DirectoryError> {
        rustix::fs::fsync(self.fd()).map_err(|error| self.error("sync", "", error))
    }

    /// Opens a shared file, which is never written, for reading.
    pub(crate) fn open_shared(&self, name: &str) -> Result<File, DirectoryError> {
        self.open_file(name, OFlags::RDONLY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_files_outlive_their_first_name_and_replace_is_complete() {
        let home = tempfile::tempdir().unwrap();
        let a = SandboxDirectory::create(home.path().join("a")).unwrap();
        let b = SandboxDirectory::create(home.path().join("b")).unwrap();
        a.write_new("disk.0", b"layer").unwrap();
        b.link_from(&a, "disk.0", "disk.7").unwrap();
        b.link(&a.open_shared("disk.0").unwrap(), "disk.8").unwrap();
        a.unlink("disk.0").unwrap();
        a.unlink("disk.0").unwrap();
        assert_eq!(b.read("disk.7", 9).unwrap(), b"layer");
        b.replace("x", b"one").unwrap();
        b.replace("x", b"two").unwrap();
        assert_eq!(b.read("x", 9).unwrap(), b"two");
        let mut names = b.names().unwrap();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        assert_eq!(names, ["disk.7", "disk.8", "x"]);
    }

    #[test]
    fn replaced_files_sync_the_directory() {
        crate::without_fsync::act("home::links::tests::replaced_files_sync_the_directory", || {
            let home = tempfile::tempdir().unwrap();
            let directory = SandboxDirectory::create(home.path().join("a")).unwrap();
            directory.replace("x", b"one").unwrap_err();
        });
    }
}
