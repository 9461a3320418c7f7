//! A regular file that is being written. If the file system allows it, the file has no name until
//! it is complete, so a process that is killed meanwhile leaves nothing behind. The file that it
//! replaces stays until then.
//!
//! Some file systems cannot create files without names (NFS, FUSE and others, and overlayfs in
//! older kernels). There the file has a temporary name beside its place from the start, which stays
//! if this process is killed. No system call replaces a name by a file without one. So a file that
//! replaces another one also has a temporary name, between two system calls.

use crate::place::Temporary;
use rustix::{
    fd::{AsRawFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, ftruncate, linkat, openat},
    io::{Errno, pread, pwrite},
};

/// The new file. If the value is dropped, the file is removed.
#[derive(Debug)]
pub(crate) struct NewFile<'d> {
    directory: BorrowedFd<'d>,
    pub(crate) file: OwnedFd,
    /// The temporary name, if the file has one yet.
    temporary: Option<Temporary<'d>>,
}

impl<'d> NewFile<'d> {
    /// Creates an empty file that is open for reading and writing. Sets `may_be_unnamed` to false if the file
    /// system cannot create files without names.
    pub(crate) fn make(directory: BorrowedFd<'d>, may_be_unnamed: &mut bool) -> Result<Self, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        if *may_be_unnamed {
            match openat(directory, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
                Ok(file) => return Ok(Self { directory, file, temporary: None }),
                // Kernels that do not know the flag return the last two (open(2)).
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => *may_be_unnamed = false,
                Err(errno) => return Err(errno),
            }
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (temporary, file) = Temporary::make(directory, false, |name| openat(directory, name, flags, mode))?;
        Ok(Self { directory, file, temporary: Some(temporary) })
    }

    /// Gives the file its final name, replacing an existing file. Returns the content.
    pub(crate) fn put(self, name: &[u8]) -> (OwnedFd, Result<(), Errno>) {
        let named = match self.temporary {
            Some(temporary) => temporary.rename(name),
            None => match link(&self.file, self.directory, name) {
                Err(Errno::EXIST) => {
                    let make = |beside: &str| link(&self.file, self.directory, beside.as_bytes());
                    Temporary::make(self.directory, true, make).and_then(|(temporary, ())| temporary.rename(name))
                }
                linked => linked,
            },
        };
        (self.file, named)
    }
}

/// Copies the content of `file` over the regular file `name`, which stays the same file, and returns
/// it. For a file over which another one is mounted: the kernel does not replace it. A process that is
/// killed meanwhile leaves a part of the content.
pub(crate) fn copy_over(file: &OwnedFd, directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let over = openat(directory, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&over)?.st_mode) != FileType::RegularFile {
        return Err(Errno::BUSY);
    }
    ftruncate(&over, 0)?;
    let mut buffer = [0; 16 << 10];
    let mut length = 0;
    loop {
        let count = pread(file, &mut buffer, length)?;
        if count == 0 {
            return Ok(over);
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let written = pwrite(&over, rest, length)?;
            length += written as u64;
            rest = &rest[written..];
        }
    }
}

/// Gives a file without a name its name, by its descriptor. Without the privilege for that, uses
/// its path in /proc (open(2)).
fn link(file: &OwnedFd, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match linkat(file, "", directory, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(CWD, path, directory, name, AtFlags::SYMLINK_FOLLOW)
        }
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::{fd::AsFd, io::write};
    use std::{
        fs::{self, File},
        path::Path,
    };

    fn names_in(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_is_invisible_until_it_is_complete() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("old"), "old").unwrap();
        fs::create_dir(home.path().join("taken")).unwrap();
        let directory = File::open(home.path()).unwrap();
        // The second round is as on a file system that cannot create files without names.
        for unnamed in [true, false] {
            let make = || NewFile::make(directory.as_fd(), &mut unnamed.clone()).unwrap();
            for name in ["old", "new"] {
                let file = make();
                write(&file.file, name.as_bytes()).unwrap();
                if unnamed {
                    assert!(
                        names_in(home.path()).iter().all(|name| !name.starts_with('.')),
                        "the file has a temporary name"
                    );
                }
                let before = fs::read(home.path().join(name)).ok();
                assert_ne!(before.as_deref(), Some(name.as_bytes()).filter(|_| name == "new"));
                file.put(name.as_bytes()).1.unwrap();
                assert_eq!(fs::read_to_string(home.path().join(name)).unwrap(), name);
            }
            drop(make());
            assert!(make().put(b"taken").1.is_err(), "a file replaced a directory");
            assert_eq!(names_in(home.path()), ["new", "old", "taken"]);
            fs::remove_file(home.path().join("new")).unwrap();
        }
    }

    #[test]
    fn content_is_copied_over_a_file_that_stays_the_same() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("busy"), "longer than the new content").unwrap();
        fs::create_dir(home.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("busy", home.path().join("link")).unwrap();
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(home.path().join("busy")).unwrap());
        let before = inode();
        let directory = File::open(home.path()).unwrap();
        let new = NewFile::make(directory.as_fd(), &mut true).unwrap();
        write(&new.file, b"new").unwrap();
        drop(copy_over(&new.file, directory.as_fd(), b"busy").unwrap());
        assert_eq!(fs::read_to_string(home.path().join("busy")).unwrap(), "new");
        assert_eq!(inode(), before);
        for name in ["directory", "link", "absent"] {
            assert!(copy_over(&new.file, directory.as_fd(), name.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn file_systems_without_unnamed_files_are_recognised() {
        // /proc creates no files of either kind. The error of the first attempt decides.
        let proc = File::open("/proc").unwrap();
        let mut may_be_unnamed = true;
        assert!(NewFile::make(proc.as_fd(), &mut may_be_unnamed).is_err());
        assert!(!may_be_unnamed);
    }
}
