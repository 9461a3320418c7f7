//! Opening a file by a path that a record states, which may come from anywhere: only a regular file is opened. A FIFO would
//! wait for a writer without end, and opening a device can do something to it.

use rustix::{
    fd::{AsRawFd, OwnedFd},
    fs::{FileType, Mode, OFlags, fstat, open as open_path},
};
use std::{fs::File, io, path::Path};

/// Why a path was not opened.
#[derive(Debug, thiserror::Error)]
pub enum RegularFileError {
    /// The host failed, or there is nothing.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A directory, device, socket or FIFO.
    #[error("not a regular file")]
    NotAFile,
}

/// Opens `path` for reading, links followed. What is there is looked at before it is opened.
///
/// # Errors
/// Every [`RegularFileError`].
pub fn open(path: &Path) -> Result<File, RegularFileError> {
    let place: OwnedFd = open_path(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
    let kind = FileType::from_raw_mode(fstat(&place).map_err(io::Error::from)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(RegularFileError::NotAFile);
    }
    // The same file again, whatever the path leads to by now.
    Ok(File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink, process::Command};

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "x").unwrap();
        symlink(at("file"), at("link")).unwrap();
        assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        assert_eq!(open(&at("link")).unwrap().metadata().unwrap().len(), 1);
        // A FIFO without a writer: an ordinary open would not return.
        for other in [at("fifo"), directory.path().to_owned(), "/dev/null".into()] {
            assert!(matches!(open(&other), Err(RegularFileError::NotAFile)), "{other:?}");
        }
        let missing = open(&at("missing")).unwrap_err();
        assert!(matches!(missing, RegularFileError::Io(error) if error.kind() == io::ErrorKind::NotFound));
    }
}
