//! flock(2) with the results that callers act on. The crates that have files which several processes use at the same time
//! share this, and each of them says in one module which locks it has and in which order they are taken. This crate knows no
//! path and no order, and opens no file.
//!
//! A lock belongs to an open file description. The kernel releases it when the last descriptor of that description is
//! closed, however its holder ended, so a killed process leaves no lock behind.

use rustix::{
    fs::{FlockOperation, flock, fstat, lstat},
    io::Errno,
};
use std::{io, os::fd::AsFd, path::Path};

/// Whether a lock excludes other holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Any number of shared holders, and no exclusive one.
    Shared,
    /// One holder.
    Exclusive,
}

/// Takes a file's lock if that is possible now, and returns false while another holder excludes it. The lock lives as long as
/// the open file description, which the caller may hand to another process.
///
/// # Errors
/// What flock(2) reports, except EWOULDBLOCK and EINTR.
pub fn try_take(sharing: Sharing, file: impl AsFd) -> io::Result<bool> {
    match uninterrupted(file, sharing, false) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Blocks the thread until the lock is taken, without a limit of time.
///
/// # Errors
/// What flock(2) reports, except EINTR.
pub fn wait(sharing: Sharing, file: impl AsFd) -> io::Result<()> {
    Ok(uninterrupted(file, sharing, true)?)
}

/// Returns true if the file that is open has this name. For a file that is deleted while processes use it, this has to be
/// asked once its lock is held: the lock of a file without a name excludes no process that opens the name.
///
/// # Errors
/// What fstat(2) reports for the file, and lstat(2) for the path, except ENOENT.
pub fn is_named(file: impl AsFd, path: &Path) -> io::Result<bool> {
    let held = fstat(file)?;
    match lstat(path) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn uninterrupted(file: impl AsFd, sharing: Sharing, waits: bool) -> Result<(), Errno> {
    let how = match (sharing, waits) {
        (Sharing::Shared, true) => FlockOperation::LockShared,
        (Sharing::Shared, false) => FlockOperation::NonBlockingLockShared,
        (Sharing::Exclusive, true) => FlockOperation::LockExclusive,
        (Sharing::Exclusive, false) => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        match flock(&file, how) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    fn open(path: &Path) -> File {
        File::options().write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn an_exclusive_holder_excludes_all_and_shared_ones_exclude_it() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, three] = [(); 3].map(|()| open(&dir.path().join("lock")));
        assert!(try_take(Sharing::Shared, &one).unwrap() && try_take(Sharing::Shared, &two).unwrap());
        assert!(!try_take(Sharing::Exclusive, &three).unwrap());
        drop((one, two));
        wait(Sharing::Exclusive, &three).unwrap();
        assert!(!try_take(Sharing::Shared, open(&dir.path().join("lock"))).unwrap());
    }

    #[test]
    fn a_file_that_was_deleted_replaced_or_linked_to_has_its_name_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = open(&path);
        assert!(is_named(&file, &path).unwrap());
        fs::rename(&path, dir.path().join("other")).unwrap();
        assert!(!is_named(&file, &path).unwrap());
        // A link to the file is another file with its name.
        std::os::unix::fs::symlink(dir.path().join("other"), &path).unwrap();
        assert!(!is_named(&file, &path).unwrap());
        fs::remove_file(&path).unwrap();
        drop(open(&path));
        assert!(!is_named(&file, &path).unwrap());
    }
}
