//! Reads the layer of changes that a guest wrote: a tar archive with whiteouts. Every byte is hostile.
//! Owns what a layer may contain, and its limits. Contents stay in the file: only their digests, sizes
//! and offsets are kept.

use crate::{
    beneath::{STAGING_PREFIX, ancestors},
    index::{Content, Kind},
};
use sandboxvm_archive::{Entry, Kind as EntryKind, ReadError, Reader};
use sandboxvm_layers::{Meaning, NameError, components, meaning};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufReader, Read},
};

/// Why a layer of changes is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It cannot be read, or is not an archive.
    #[error("cannot read the changes of the sandbox: {0}")]
    Archive(#[from] ReadError),
    /// The path of an entry is invalid.
    #[error("invalid entry \"{}\" in the changes of the sandbox: {problem}", .path.escape_ascii())]
    Name {
        /// The path.
        path: Vec<u8>,
        /// What is wrong.
        problem: NameError,
    },
    /// An entry contradicts another one, or is of a kind that no guest of ours writes.
    #[error("invalid entry \"{}\" in the changes of the sandbox: {problem}", .path.escape_ascii())]
    Entry {
        /// The path.
        path: Vec<u8>,
        /// What is wrong.
        problem: &'static str,
    },
    /// A limit.
    #[error("cannot read the changes of the sandbox: they have more than {limit} {what}")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// Maximum number of names on a path. The agent packs at most 256 levels.
const MAX_DEPTH: usize = 300;

/// Limits of a layer of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLimits {
    /// Maximum number of entries, and of directories above them without an own entry. Default:
    /// 1,000,000.
    pub entries: u64,
    /// Maximum size of all of their paths and targets in bytes. Default: 256 MiB.
    pub name_bytes: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self { entries: 1_000_000, name_bytes: 256 << 20 }
    }
}

/// A file after the changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Kind, and where the content lies.
    pub kind: Kind,
    /// Permissions. There are no setuid and setgid bits.
    pub mode: u32,
}

/// What a layer says.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    /// Files that it has, by their path.
    pub(crate) files: BTreeMap<Vec<u8>, State>,
    /// Directories above these that had no entry before what is in them.
    pub(crate) implied: BTreeSet<Vec<u8>>,
    /// Paths that it removes from what is below.
    pub(crate) removed: BTreeSet<Vec<u8>>,
    /// Directories of which it removes what is below.
    pub(crate) opaque: BTreeSet<Vec<u8>>,
    /// Devices and named pipes, which do not belong to a project.
    pub(crate) special: BTreeSet<Vec<u8>>,
}

/// Input that knows how far it was read.
struct Counted<R> {
    input: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Reads a layer, whose contents get the source number `source`.
pub(crate) fn read(input: impl Read, source: u8, limits: &LayerLimits) -> Result<Layer, LayerError> {
    let mut reader = Reader::new(Counted { input: BufReader::with_capacity(1 << 18, input), position: 0 });
    let mut layer = Layer::default();
    let (mut entries, mut name_bytes) = (0, 0_u64);
    let check = |entries, name_bytes| {
        if entries > limits.entries {
            return Err(LayerError::TooMany { what: "entries", limit: limits.entries });
        }
        if name_bytes > limits.name_bytes {
            return Err(LayerError::TooMany { what: "bytes of names", limit: limits.name_bytes });
        }
        Ok(())
    };
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        let target = if let EntryKind::Symlink(to) | EntryKind::HardLink(to) = &entry.kind { to.len() } else { 0 };
        name_bytes += (entry.path.len() + target) as u64;
        check(entries, name_bytes)?;
        let mut content = Content { size: 0, digest: [0; 32], layer: source, offset: reader.input().position };
        if let EntryKind::File { size, .. } = &entry.kind {
            let mut digest = Sha256::new();
            let mut buffer = [0; 16 << 10];
            loop {
                match reader.read_content(&mut buffer)? {
                    0 => break,
                    count => digest.update(&buffer[..count]),
                }
            }
            (content.size, content.digest) = (*size, digest.finalize().into());
        }
        let (count, bytes) = layer.entry(entry, content)?;
        entries += count;
        name_bytes += bytes;
        check(entries, name_bytes)?;
    }
    layer.check()?;
    Ok(layer)
}

impl Layer {
    /// Takes one entry. Returns the number of directories that it implies, and the size of their paths.
    fn entry(&mut self, entry: Entry, content: Content) -> Result<(u64, u64), LayerError> {
        let name = |problem| LayerError::Name { path: entry.path.clone(), problem };
        let invalid = |problem| LayerError::Entry { path: entry.path.clone(), problem };
        let path = components(&entry.path).map_err(name)?;
        if path.len() > MAX_DEPTH {
            return Err(invalid("its path is too deep"));
        }
        if path.first().is_some_and(|first| first.starts_with(STAGING_PREFIX.as_bytes())) {
            return Err(invalid("the name is that of the files of an apply"));
        }
        let (above, meaning) = meaning(&path).map_err(name)?;
        let above = above.join(&b'/');
        let at = |name: &[u8]| if above.is_empty() { name.to_vec() } else { [&above[..], b"/", name].concat() };
        let name = match meaning {
            // The root of a project is never changed.
            Meaning::Root | Meaning::Ignored => return Ok((0, 0)),
            Meaning::Opaque => {
                self.opaque.insert(above);
                return Ok((0, 0));
            }
            Meaning::Whiteout(name) => {
                self.removed.insert(at(name));
                return Ok((0, 0));
            }
            Meaning::File(name) => name,
        };
        let path = at(name);
        self.special.remove(&path);
        let state = match &entry.kind {
            EntryKind::File { extents: Some(_), .. } => return Err(invalid("a sparse file")),
            EntryKind::File { .. } => State { kind: Kind::File(content), mode: entry.mode & 0o777 },
            EntryKind::Directory => State { kind: Kind::Directory, mode: entry.mode & 0o1777 },
            EntryKind::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return Err(invalid("the target of the symbolic link is invalid"));
            }
            EntryKind::Symlink(target) => State { kind: Kind::Symlink(target.clone()), mode: 0o777 },
            EntryKind::HardLink(target) => {
                let target = components(target).map_err(|_| invalid("the target of the hard link is invalid"))?;
                match self.files.get(&target.join(&b'/')) {
                    Some(file @ State { kind: Kind::File(_), .. }) => file.clone(),
                    _ => return Err(invalid("the target of the hard link does not exist")),
                }
            }
            EntryKind::Device { .. } | EntryKind::Fifo => {
                self.files.remove(&path);
                self.special.insert(path);
                return Ok((0, 0));
            }
            EntryKind::Other(_) => return Err(invalid("unknown kind of entry")),
        };
        let (mut count, mut bytes) = (0, 0);
        for above in ancestors(&path) {
            // What is above a known path is known.
            if self.files.contains_key(above) || !self.implied.insert(above.to_vec()) {
                break;
            }
            count += 1;
            bytes += above.len() as u64;
        }
        self.files.insert(path, state);
        Ok((count, bytes))
    }

    /// Checks that no path leads through a file or a symbolic link of the layer.
    fn check(&self) -> Result<(), LayerError> {
        let paths = self.files.keys().chain(&self.removed).chain(&self.opaque).chain(&self.special);
        for path in paths {
            for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                let above = &path[..at];
                let is_directory = self.files.get(above).is_none_or(|file| file.kind == Kind::Directory);
                if !is_directory || self.special.contains(above) {
                    let problem = "its path leads through a file that is not a directory";
                    return Err(LayerError::Entry { path: path.clone(), problem });
                }
            }
        }
        Ok(())
    }
}
