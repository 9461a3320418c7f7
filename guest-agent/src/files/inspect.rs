//! Describes files: stat and list.

use super::channel::Channel;
use super::describer::Describer;
use super::details::Reader;
use super::failure::{Trouble, refused};
use rustix::fs::{CWD, Dir, Mode, OFlags, open, openat};
use rustix::io::Errno;
use sandboxvm_protocol::agent::details::{DETAILS_BUDGET, FileDetails, MAX_DETAILS};
use sandboxvm_protocol::agent::files::{
    FileEntry, FileErrorKind, FileKind, FilePath, FileReply, FileTotals, MAX_ENTRIES, PAGE_BUDGET,
};
use std::os::fd::AsFd;

/// Maximum number of levels of a list. Each is an open directory.
const MAX_DEPTH: u32 = 256;

/// Describes the file at `path`.
pub(super) fn describe(path: &[u8], follow: bool) -> Result<FileEntry, Trouble> {
    Describer::new().describe(CWD, path, path, follow)
}

pub(super) fn stat(path: &[u8], follow: bool) -> Result<FileReply, Trouble> {
    describe(path, follow).map(FileReply::Entry)
}

pub(super) fn list(channel: &mut Channel, path: &[u8], depth: u32) -> Result<FileReply, Trouble> {
    walk(channel, path, depth, Page::Entries(Vec::new()))
}

pub(super) fn list_details(channel: &mut Channel, path: &[u8], depth: u32) -> Result<FileReply, Trouble> {
    walk(channel, path, depth, Page::Details(Vec::new(), Reader::new()))
}

fn walk(channel: &mut Channel, path: &[u8], depth: u32, page: Page) -> Result<FileReply, Trouble> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty()).map_err(|errno| refused("list it", path, errno))?;
    let directory = Dir::new(directory).map_err(|errno| refused("list it", path, errno))?;
    let mut listing = Listing { channel, describer: Describer::new(), page, budget: 0, totals: FileTotals::default() };
    listing.directory(directory, path, depth.min(MAX_DEPTH))?;
    listing.send()?;
    Ok(FileReply::Done(listing.totals))
}

/// The entries that are sent next.
enum Page {
    Entries(Vec<FileEntry>),
    Details(Vec<FileDetails>, Reader),
}

impl Page {
    /// Adds an entry, whose path is `path`. Returns the size of its paths and metadata in bytes.
    fn push(&mut self, entry: FileEntry, path: &[u8]) -> usize {
        let length = |path: Option<&FilePath>| path.map_or(0, |path| path.as_bytes().len());
        let bytes = length(Some(&entry.path)) + length(entry.link_target.as_ref());
        match self {
            Self::Entries(page) => {
                page.push(entry);
                bytes
            }
            Self::Details(page, reader) => {
                let details = reader.read(entry, path);
                let more = length(details.target.as_ref().map(|target| &target.path)) + details.metadata.size();
                page.push(details);
                bytes + more
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Entries(page) => page.is_empty(),
            Self::Details(page, _) => page.is_empty(),
        }
    }

    /// Returns true if the page is as large as one message may be. `bytes` is the size of its paths
    /// and metadata.
    fn is_full(&self, bytes: usize) -> bool {
        match self {
            Self::Entries(page) => page.len() == MAX_ENTRIES || bytes >= PAGE_BUDGET,
            Self::Details(page, _) => page.len() == MAX_DETAILS || bytes >= DETAILS_BUDGET,
        }
    }

    fn take(&mut self) -> FileReply {
        match self {
            Self::Entries(page) => FileReply::Entries(std::mem::take(page)),
            Self::Details(page, _) => FileReply::DetailsPage(std::mem::take(page)),
        }
    }
}

struct Listing<'c> {
    channel: &'c mut Channel,
    describer: Describer,
    page: Page,
    /// Size of paths and metadata in the page, in bytes.
    budget: usize,
    totals: FileTotals,
}

impl Listing<'_> {
    fn directory(&mut self, mut names: Dir, path: &[u8], depth: u32) -> Result<(), Trouble> {
        if depth == 0 {
            return Ok(());
        }
        let fail = |errno| refused("list it", path, errno);
        while let Some(name) = names.read() {
            let name = name.map_err(fail)?;
            let name = name.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let below = [path.strip_suffix(b"/").unwrap_or(path), b"/", name].concat();
            let directory = names.fd().map_err(fail)?;
            let entry = match self.describer.describe(directory, name, &below, false) {
                Ok(entry) => entry,
                // The file was removed meanwhile.
                Err(Trouble::Failed(failure)) if failure.kind == FileErrorKind::NotFound => continue,
                Err(trouble) => return Err(trouble),
            };
            let is_directory = entry.kind == FileKind::Directory;
            self.push(entry, &below)?;
            if is_directory && depth > 1 {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(directory.as_fd(), name, flags, Mode::empty()).and_then(Dir::new) {
                    Ok(opened) => self.directory(opened, &below, depth - 1)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(refused("list it", &below, errno)),
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: FileEntry, path: &[u8]) -> Result<(), Trouble> {
        self.totals.entries += 1;
        self.budget += self.page.push(entry, path);
        if self.page.is_full(self.budget) { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Trouble> {
        if self.page.is_empty() {
            return Ok(());
        }
        self.budget = 0;
        self.channel.reply(&self.page.take())
    }
}
