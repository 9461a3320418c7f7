//! The files of an archive or layout, by name, copied to unfinished files of the store. Copying
//! stops at the limits for a layer and for an image.

use super::{
    error::LoadError,
    input::{self, Input},
};
use crate::{
    limits::MAX_MANIFEST,
    manifest::{Blob, printable},
    store::{Hold, Staged, Store, StoreError},
};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use sandboxvm_archive::{Kind, Reader};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::Path,
};

/// Members whose names end like this describe what other members state as well.
const IGNORED: &[&str] = &["VERSION", "/json", "repositories"];
/// Members whose names end like this are documents, not layers.
const DOCUMENTS: &[&str] = &[".json", "oci-layout"];
/// Maximum number of entries for each file that may belong to images. Others are directories and
/// files that are ignored.
const ENTRIES_FOR_EACH: usize = 16;

/// A file.
#[derive(Debug)]
struct Member {
    blob: Blob,
    beginning: Vec<u8>,
    /// `None` after it became a blob of the store.
    staged: Option<Staged>,
}

/// The files, and which of them belong to the image.
#[derive(Debug)]
pub(crate) struct Members<'a> {
    store: &'a Store,
    files: HashMap<String, Member>,
    links: HashMap<String, String>,
    directory: Option<OwnedFd>,
    bytes: u64,
    used: HashSet<String>,
    /// Images may share blobs, so those of an earlier one stay until the last one is complete.
    holds: Vec<Hold>,
}

impl<'a> Members<'a> {
    fn new(store: &'a Store, directory: Option<OwnedFd>) -> Self {
        let (files, links, used) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { store, files, links, directory, bytes: 0, used, holds: Vec::new() }
    }

    /// Opens an OCI layout. Its files are copied when they are needed.
    pub(crate) fn of_directory(store: &'a Store, path: &Path) -> Result<Self, LoadError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        Ok(Self::new(store, Some(opened.map_err(|error| LoadError::Input(error.into()))?)))
    }

    /// Copies the files of a tar archive, plain or with gzip.
    pub(crate) fn of_archive(store: &'a Store, input: impl Read) -> Result<Self, LoadError> {
        let mut members = Self::new(store, None);
        let limits = store.limits();
        let mut archive = Reader::new(Input::open(input, limits.image_bytes)?);
        let mut entries = 0;
        while let Some(entry) = archive.next_entry().map_err(input::failure)? {
            entries += 1;
            if entries > limits.archive_members.saturating_mul(ENTRIES_FOR_EACH) {
                return Err(LoadError::TooLarge(format!("more than {} entries", entries - 1)));
            }
            let Some(name) = normal(&entry.path) else { continue };
            if IGNORED.iter().any(|ignored| name.ends_with(ignored)) {
                continue;
            }
            match entry.kind {
                Kind::File { extents: Some(_), .. } => return Err(LoadError::Malformed("a file with holes".into())),
                Kind::File { .. } => {
                    let is_document = DOCUMENTS.iter().any(|end| name.ends_with(end));
                    let maximum = if is_document { MAX_MANIFEST } else { limits.layer_bytes };
                    let read = |buffer: &mut [u8]| archive.read_content(buffer).map_err(input::failure);
                    let member = members.copy(&name, maximum, read)?;
                    // Programs disagree on which of two is meant.
                    let other = members.files.get(&name).map(|other| other.blob);
                    if members.links.contains_key(&name) || other.is_some_and(|other| other != member.blob) {
                        return Err(LoadError::Malformed(format!("{} occurs twice", printable(&name))));
                    }
                    members.files.insert(name, member);
                }
                // Docker writes a link for a layer that occurs twice.
                Kind::Symlink(target) => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let target = String::from_utf8_lossy(&target);
                    let Some(target) = normal(format!("{directory}/{target}").as_bytes()) else { continue };
                    let other = members.links.get(&name);
                    if members.files.contains_key(&name) || other.is_some_and(|other| *other != target) {
                        return Err(LoadError::Malformed(format!("{} occurs twice", printable(&name))));
                    }
                    members.links.insert(name, target);
                }
                _ => continue,
            }
            if members.files.len() + members.links.len() > limits.archive_members {
                return Err(LoadError::TooLarge(format!("more than {} files", limits.archive_members)));
            }
        }
        Ok(members)
    }

    fn copy(
        &mut self,
        name: &str,
        maximum: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, LoadError>,
    ) -> Result<Member, LoadError> {
        let mut staged = self.store.stage()?;
        let (mut buffer, mut beginning) = (vec![0; 1 << 16], Vec::new());
        let limits = self.store.limits();
        loop {
            let count = read(&mut buffer)?;
            if count == 0 {
                return Ok(Member { blob: staged.blob(), beginning, staged: Some(staged) });
            }
            self.bytes = self.bytes.saturating_add(count as u64);
            if staged.written().saturating_add(count as u64) > maximum {
                return Err(LoadError::TooLarge(format!("{} has more than {maximum} bytes", printable(name))));
            }
            if self.bytes > limits.image_bytes {
                return Err(LoadError::TooLarge(format!("more than {} bytes", limits.image_bytes)));
            }
            beginning.extend(buffer[..count].iter().take(4_usize.saturating_sub(beginning.len())));
            staged.write(&buffer[..count])?;
        }
    }

    fn find(&mut self, name: &str, maximum: u64) -> Result<Option<&Member>, LoadError> {
        let Some(name) = normal(name.as_bytes()) else { return Ok(None) };
        let name = self.links.get(&name).cloned().unwrap_or(name);
        if let (Some(directory), false) = (&self.directory, self.files.contains_key(&name)) {
            let Some(mut file) = open_in(directory, &name)? else { return Ok(None) };
            let member = self.copy(&name, maximum, |buffer| file.read(buffer).map_err(LoadError::Input))?;
            self.files.insert(name.clone(), member);
        }
        self.used.insert(name.clone());
        Ok(self.files.get(&name))
    }

    /// Returns the content of a small file.
    pub(super) fn document(&mut self, name: &str, maximum: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let store = self.store;
        let Some(member) = self.find(name, maximum)? else { return Ok(None) };
        if member.blob.size > maximum {
            return Err(LoadError::TooLarge(format!("{} has more than {maximum} bytes", printable(name))));
        }
        Ok(Some(match &member.staged {
            Some(staged) => staged.beginning(maximum)?,
            None => store.read_document(member.blob.digest, maximum)?,
        }))
    }

    /// Returns digest, size and first bytes of a file.
    pub(super) fn content(&mut self, name: &str) -> Result<(Blob, Vec<u8>), LoadError> {
        let found = self.find(name, self.store.limits().layer_bytes)?;
        let found = found.ok_or_else(|| LoadError::Malformed(format!("{} is missing", printable(name))))?;
        Ok((found.blob, found.beginning.clone()))
    }

    /// Gives the blobs of an image their final names. Each was looked up before.
    pub(super) fn publish(&mut self, hold: &Hold, blobs: &[Blob]) -> Result<(), LoadError> {
        self.holds.push(hold.clone());
        for blob in blobs {
            let used = self.files.iter_mut().filter(|(name, member)| self.used.contains(*name) && member.blob == *blob);
            // Without one, another image of the archive has the same blob.
            if let Some(staged) = used.filter_map(|(_, member)| member.staged.take()).next() {
                staged.publish(self.store, hold)?;
            } else if !self.store.has(*blob)? {
                return Err(StoreError::Missing(blob.digest).into());
            }
        }
        Ok(())
    }

    pub(super) fn store(&self) -> &'a Store {
        self.store
    }
}

/// Opens a file of a layout. No link in the layout leads out of it.
fn open_in(directory: &OwnedFd, name: &str) -> Result<Option<File>, LoadError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file: File = match rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve) {
        Ok(file) => file.into(),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
            return Err(LoadError::Malformed(format!("{} is a link", printable(name))));
        }
        Err(error) => return Err(LoadError::Input(error.into())),
    };
    let status = rustix::fs::fstat(&file).map_err(|error| LoadError::Input(error.into()))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(LoadError::Malformed(format!("{} is not a regular file", printable(name))));
    }
    Ok(Some(file))
}

/// Returns a path without `.`, `..` and empty components, or `None` if it leads out of the archive.
fn normal(path: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    for part in std::str::from_utf8(path).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    if parts.is_empty() { None } else { Some(parts.join("/")) }
}
