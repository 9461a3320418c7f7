//! Details of a file beyond stat(2): the target of a symbolic link, and metadata in extended
//! attributes.

use super::describer::{Describer, kind};
use super::failure::{Trouble, refused};
use rustix::fs::{CWD, XattrFlags, fsetxattr, getxattr, listxattr, stat};
use rustix::io::Errno;
use sandboxvm_protocol::agent::details::{
    FileDetails, FileMetadata, FoundTarget, LinkTarget, MAX_METADATA, METADATA_PREFIX,
};
use sandboxvm_protocol::agent::files::{FileEntry, FileKind, FilePath, FileReply};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Maximum size of the names of a file's attributes (Linux `XATTR_LIST_MAX`).
const MAX_NAMES: usize = 64 * 1024;

/// Reads details, and owns the buffers for that.
#[derive(Debug)]
pub(super) struct Reader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { names: vec![0; MAX_NAMES], value: vec![0; MAX_METADATA] }
    }

    /// Returns the details of `entry`, whose path is `path`.
    pub(super) fn read(&mut self, entry: FileEntry, path: &[u8]) -> FileDetails {
        let target = (entry.kind == FileKind::Symlink).then(|| target(path)).flatten();
        FileDetails { target, metadata: self.metadata(path), entry }
    }

    /// Returns the metadata. Omits everything that cannot be read.
    fn metadata(&mut self, path: &[u8]) -> FileMetadata {
        let mut metadata = FileMetadata::default();
        let Ok(length) = listxattr(path, &mut self.names[..]) else { return metadata };
        for name in self.names[..length].split(|byte| *byte == 0) {
            let Some(key) = name.strip_prefix(METADATA_PREFIX.as_bytes()) else { continue };
            let Ok(key) = std::str::from_utf8(key) else { continue };
            // A value that does not fit the buffer is longer than metadata may be.
            let Ok(length) = getxattr(path, name, &mut self.value[..]) else { continue };
            let Ok(value) = std::str::from_utf8(&self.value[..length]) else { continue };
            // Programs in the guest may have set more metadata than hosts accept.
            let _ = metadata.insert(key.to_owned(), value.to_owned());
        }
        metadata
    }
}

/// Returns the target of the symbolic link at `path`.
fn target(path: &[u8]) -> Option<LinkTarget> {
    let real = std::fs::canonicalize(Path::new(OsStr::from_bytes(path))).ok();
    let found = real.as_ref().and_then(|real| stat(real).ok());
    let path = match (real, &found) {
        (Some(real), Some(_)) => real.into_os_string().into_vec(),
        _ => path.to_vec(),
    };
    let found = found.map(|about| FoundTarget { kind: kind(&about), mode: about.st_mode & 0o7777 });
    Some(LinkTarget { path: FilePath::try_from(path).ok()?, found })
}

pub(super) fn describe(path: &[u8]) -> Result<FileReply, Trouble> {
    let entry = Describer::new().describe(CWD, path, path, false)?;
    Ok(FileReply::Details(Reader::new().read(entry, path)))
}

/// Sets the metadata of a new file.
pub(super) fn set_metadata(file: impl AsFd, metadata: &FileMetadata, path: &[u8]) -> Result<(), Trouble> {
    for (key, value) in metadata.iter() {
        match fsetxattr(&file, format!("{METADATA_PREFIX}{key}"), value.as_bytes(), XattrFlags::empty()) {
            Ok(()) => {}
            // This file system has no attributes. The host notices, because the reply has the
            // metadata that was stored.
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(refused("give it metadata", path, errno)),
        }
    }
    Ok(())
}
