//! Identifies files by content: by their SHA-256, which is stored for each version of a file, so
//! that an image of some hundred MiB is read once and not at every start.
//!
//! `contents/<device>-<inode>-<size>-<mtime>` in the home holds the hash of that version (see
//! [`FileVersion`]). Only the owner of the home can write a wrong entry. This module may not
//! change the files that it hashes.

use crate::home::{directory::DirectoryError, host::hex, layout::Home, private};
use sandboxvm_images::{file_version::FileVersion, regular};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// A path, and the hash of the file that was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Path of the file when it was hashed.
    pub path: PathBuf,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Returns the content of `file`, which was opened at `path`. Reads the whole file the first time.
pub(crate) fn of(home: &Home, file: &File, path: &Path) -> Result<Content, DirectoryError> {
    let fail = |source| DirectoryError::new("read", path, source);
    let identity = FileVersion::from(&file.metadata().map_err(fail)?);
    let FileVersion { device, inode, size, modified_ns } = identity;
    let entry = home.contents().join(format!("{device}-{inode}-{size}-{modified_ns}"));
    let known = fs::read_to_string(&entry).ok().filter(|text| is_hash(text));
    let sha256 = match known {
        Some(sha256) => sha256,
        None => {
            let sha256 = hash(file).map_err(fail)?;
            // A hash that cannot be stored is computed again next time. An incomplete entry is not
            // accepted (see `is_hash`).
            let _ = private::write(&entry, &sha256);
            sha256
        }
    };
    Ok(Content { path: path.to_owned(), sha256 })
}

/// Like [`of`], for a file that may not exist any more.
pub(crate) fn at(home: &Home, path: &Path) -> Result<Content, DirectoryError> {
    let file = File::open(path).map_err(|source| DirectoryError::new("open", path, source))?;
    of(home, &file, path)
}

/// Opens the file that has this content: at its old path, or else at `or`.
pub(crate) fn find(home: &Home, content: &Content, or: &Path) -> Option<File> {
    [content.path.as_path(), or].into_iter().find_map(|path| {
        let file = regular::open(path).ok()?;
        of(home, &file, path).is_ok_and(|found| found.sha256 == content.sha256).then_some(file)
    })
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn hash(file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hex(&hash.finalize())),
            n => {
                hash.update(&buffer[..n]);
                offset += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_hashed_once_and_damaged_entries_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "abc").unwrap();
        let first = at(&home, &path).unwrap();
        assert_eq!(first.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let entry = fs::read_dir(home.contents()).unwrap().next().unwrap().unwrap().path();
        fs::write(&entry, "0".repeat(64)).unwrap();
        assert_eq!(at(&home, &path).unwrap().sha256, "0".repeat(64), "it was read again");
        fs::write(&entry, "0").unwrap();
        assert_eq!(at(&home, &path).unwrap(), first);
    }

    /// The path is of a record that may come from anywhere.
    #[test]
    fn content_is_not_looked_for_in_what_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let (file, fifo) = (dir.path().join("file"), dir.path().join("fifo"));
        fs::write(&file, "abc").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let stated = Content { path: fifo, ..at(&home, &file).unwrap() };
        let (tell, told) = std::sync::mpsc::channel();
        // Opening a FIFO would wait for a writer.
        std::thread::spawn(move || tell.send(find(&home, &stated, &file).is_some()));
        assert!(told.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits for a writer"));
    }
}
