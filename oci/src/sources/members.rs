//! The files of an archive or layout, by name, copied to unfinished files of the store. Copying
//! stops at the limits for a layer and for an image.

use super::error::LoadError;
use crate::{
    manifest::Blob,
    store::{Hold, Staged, Store},
};
use flate2::read::MultiGzDecoder;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use sandboxvm_archive::{Kind, Reader};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    path::Path,
};

/// Members whose names end like this describe what other members state as well.
const IGNORED: &[&str] = &["VERSION", "/json", "repositories"];

/// The files, and which of them belong to the image.
#[derive(Debug)]
pub(crate) struct Members<'a> {
    store: &'a Store,
    staged: HashMap<String, Staged>,
    links: HashMap<String, String>,
    directory: Option<OwnedFd>,
    bytes: u64,
    used: HashSet<String>,
}

impl<'a> Members<'a> {
    fn new(store: &'a Store, directory: Option<OwnedFd>) -> Self {
        let (staged, links, used) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { store, staged, links, directory, bytes: 0, used }
    }

    /// Opens an OCI layout. Its files are copied when they are needed.
    pub(crate) fn of_directory(store: &'a Store, path: &Path) -> Result<Self, LoadError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        Ok(Self::new(store, Some(opened.map_err(|error| LoadError::Input(error.into()))?)))
    }

    /// Copies the files of a tar archive, plain or with gzip.
    pub(crate) fn of_archive(store: &'a Store, input: impl Read) -> Result<Self, LoadError> {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let is_gzip = input.fill_buf().map_err(LoadError::Input)?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn Read + '_> = if is_gzip { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) };
        let mut members = Self::new(store, None);
        let mut archive = Reader::new(input);
        while let Some(entry) = archive.next_entry()? {
            let Some(name) = normal(&entry.path) else { continue };
            if IGNORED.iter().any(|ignored| name.ends_with(ignored)) {
                continue;
            }
            match entry.kind {
                Kind::File { extents: Some(_), .. } => return Err(LoadError::Malformed("a file with holes".into())),
                Kind::File { .. } => {
                    let staged = members.copy(|buffer| Ok(archive.read_content(buffer)?))?;
                    members.staged.insert(name, staged);
                }
                // Docker writes a link for a layer that occurs twice.
                Kind::Symlink(target) => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let target = String::from_utf8_lossy(&target);
                    if let Some(target) = normal(format!("{directory}/{target}").as_bytes()) {
                        members.links.insert(name, target);
                    }
                }
                _ => continue,
            }
            if members.staged.len() + members.links.len() > store.limits().archive_members {
                return Err(LoadError::TooLarge(format!("more than {} files", store.limits().archive_members)));
            }
        }
        Ok(members)
    }

    fn copy(&mut self, mut read: impl FnMut(&mut [u8]) -> Result<usize, LoadError>) -> Result<Staged, LoadError> {
        let mut staged = self.store.stage()?;
        let mut buffer = vec![0; 1 << 16];
        let limits = self.store.limits();
        loop {
            let count = read(&mut buffer)?;
            if count == 0 {
                return Ok(staged);
            }
            self.bytes = self.bytes.saturating_add(count as u64);
            if staged.blob().size + count as u64 > limits.layer_bytes || self.bytes > limits.image_bytes {
                return Err(LoadError::TooLarge(format!("more than {} bytes", self.bytes)));
            }
            staged.write(&buffer[..count])?;
        }
    }

    fn find(&mut self, name: &str) -> Result<Option<&Staged>, LoadError> {
        let name = self.links.get(name).cloned().unwrap_or_else(|| name.to_owned());
        if let (Some(directory), false) = (&self.directory, self.staged.contains_key(&name)) {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut file: File = match rustix::fs::openat(directory, &name, flags, Mode::empty()) {
                Ok(file) => file.into(),
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                Err(error) => return Err(LoadError::Input(error.into())),
            };
            let status = rustix::fs::fstat(&file).map_err(|error| LoadError::Input(error.into()))?;
            if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
                return Err(LoadError::Malformed(format!("{name} is not a regular file")));
            }
            let staged = self.copy(|buffer| file.read(buffer).map_err(LoadError::Input))?;
            self.staged.insert(name.clone(), staged);
        }
        self.used.insert(name.clone());
        Ok(self.staged.get(&name))
    }

    /// Returns the content of a small file.
    pub(super) fn document(&mut self, name: &str, maximum: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let Some(staged) = self.find(name)? else { return Ok(None) };
        if staged.blob().size > maximum {
            return Err(LoadError::TooLarge(format!("{name} has more than {maximum} bytes")));
        }
        Ok(Some(staged.beginning(maximum)?))
    }

    /// Returns digest, size and first bytes of a file.
    pub(super) fn content(&mut self, name: &str) -> Result<(Blob, Vec<u8>), LoadError> {
        let found = self.find(name)?.ok_or_else(|| LoadError::Malformed(format!("{name} is missing")))?;
        Ok((found.blob(), found.beginning(4)?))
    }

    /// Gives the blobs of an image their final names. Each was looked up before.
    pub(super) fn publish(&mut self, hold: &Hold, blobs: &[Blob]) -> Result<(), LoadError> {
        for blob in blobs {
            let name = self.staged.iter().find(|(name, staged)| self.used.contains(*name) && staged.blob() == *blob);
            // Another image of the archive may have the same blob.
            if let Some(staged) = name.map(|(name, _)| name.clone()).and_then(|name| self.staged.remove(&name)) {
                staged.publish(self.store, hold)?;
            } else if !self.store.has(*blob)? {
                return Err(LoadError::Malformed(format!("{} is missing", blob.digest)));
            }
        }
        Ok(())
    }

    pub(super) fn store(&self) -> &'a Store {
        self.store
    }
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
