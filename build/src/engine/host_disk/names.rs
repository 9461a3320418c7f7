//! The names on a disk, and the layer with what a step adds. Refuses what only a kernel resolves.

use crate::engine::{
    error::StepProblem,
    machine::{Found, Owner},
};
use sandboxvm_archive::{Entry, Kind, Reader, Timestamp, Writer};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, BufWriter, Seek},
};

/// Maximum number of names on the disk, and of their bytes with those of attributes.
const MAX_NAMES: (usize, usize) = (1_000_000, 256 << 20);
/// Maximum size in bytes of the content of a layer, as of one that a machine makes.
const MAX_CONTENT: u64 = 16 << 30;
/// Maximum length of a name in bytes (Linux `NAME_MAX`).
const MAX_NAME: usize = 255;
/// Where the agent has its files. They are in no layer.
const AGENT: &[u8] = b"run/sandboxvm";

/// What a name stands for.
#[derive(Debug)]
enum Known {
    Directory {
        /// The entry with its metadata.
        entry: Box<Entry>,
        /// The last layer that has it.
        layer: u32,
    },
    Link,
    File {
        /// The layer that has its content.
        layer: u32,
    },
}

impl Known {
    /// Returns how many bytes of names and attributes it keeps.
    fn bytes(&self) -> usize {
        match self {
            Self::Directory { entry, .. } => {
                let attributes = entry.attributes.iter().map(|(name, value)| name.len() + value.len());
                entry.path.len() + attributes.sum::<usize>()
            }
            Self::Link | Self::File { .. } => 0,
        }
    }
}

/// Why a step is not executed here.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskProblem {
    /// A machine has to execute it, for this reason.
    #[error("{0}")]
    NeedsMachine(&'static str),
    /// It fails in a machine too.
    #[error(transparent)]
    Step(#[from] StepProblem),
}

impl From<io::Error> for DiskProblem {
    fn from(error: io::Error) -> Self {
        Self::Step(error.into())
    }
}

impl From<sandboxvm_archive::ReadError> for DiskProblem {
    fn from(error: sandboxvm_archive::ReadError) -> Self {
        Self::Step(error.into())
    }
}

pub(super) type Outcome<T> = Result<T, DiskProblem>;

/// The names, and the layer that is being written.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By path without a slash at either end. The root has no entry.
    known: BTreeMap<Vec<u8>, Known>,
    /// Number of the layer, from 1. 0: the image below.
    layer: u32,
    writer: Option<Writer<BufWriter<File>>>,
    /// Bytes of content in the layer.
    content: u64,
    name_bytes: usize,
}

/// Returns the path of each directory above a path, and then the path.
fn levels(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
    above.chain([path]).filter(|level| !level.is_empty())
}

/// Returns a path without empty names and `.`, if a layer can state it.
fn normal(path: &[u8]) -> Outcome<Vec<u8>> {
    let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.iter().any(|name| *name == b".." || name.len() > MAX_NAME || name.contains(&0)) {
        return Err(DiskProblem::NeedsMachine("a path of a file is refused or resolved by the kernel"));
    }
    if names.iter().any(|name| name.starts_with(b".wh.")) {
        return Err(DiskProblem::NeedsMachine("a file has the name of a whiteout"));
    }
    let normal = names.join(&b'/');
    match normal.strip_prefix(AGENT) {
        Some([] | [b'/', ..]) => Err(DiskProblem::NeedsMachine("the agent has files of this name")),
        _ => Ok(normal),
    }
}

fn directory(path: Vec<u8>, mode: u32, Owner { uid, gid }: Owner) -> Entry {
    let modified = Timestamp::default();
    Entry { path, kind: Kind::Directory, mode, uid, gid, modified, attributes: Vec::new() }
}

impl Names {
    /// Reads a list of names. It is hostile.
    pub(super) fn read(list: File) -> Result<Self, StepProblem> {
        let mut names = Self::default();
        let mut reader = Reader::new(BufReader::new(list)).keep_all_attributes();
        while let Some(entry) = reader.next_entry()? {
            let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path).to_vec();
            let known = match &entry.kind {
                Kind::Directory => Known::Directory { entry: Box::new(entry), layer: 0 },
                Kind::Symlink(_) => Known::Link,
                _ => Known::File { layer: 0 },
            };
            if !path.is_empty() {
                names.insert(path, known)?;
            }
        }
        Ok(names)
    }

    /// Begins a layer, in an empty file.
    pub(super) fn begin(&mut self, layer: File) {
        (self.layer, self.content) = (self.layer + 1, 0);
        self.writer = Some(Writer::new(BufWriter::with_capacity(1 << 16, layer)));
    }

    /// Ends the layer and returns it.
    pub(super) fn finish(&mut self) -> Result<File, StepProblem> {
        // Each layer is begun before its step.
        let Some(writer) = self.writer.take() else { return Err(io::Error::other("no layer is open").into()) };
        let mut file = writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(file)
    }

    fn insert(&mut self, path: Vec<u8>, known: Known) -> Result<(), StepProblem> {
        self.name_bytes += path.len() + known.bytes();
        self.known.insert(path, known);
        if self.known.len() > MAX_NAMES.0 || self.name_bytes > MAX_NAMES.1 {
            return Err(StepProblem::Unsupported(format!("an image of more than {} names", MAX_NAMES.0)));
        }
        Ok(())
    }

    pub(super) fn find(&self, path: &[u8]) -> Outcome<Option<Found>> {
        let path = normal(path)?;
        let mut found = Found::Directory;
        for level in levels(&path) {
            found = match (found, self.known.get(level)) {
                (Found::File, _) | (_, None) => return Ok(None),
                (_, Some(Known::Directory { .. })) => Found::Directory,
                (_, Some(Known::File { .. })) => Found::File,
                (_, Some(Known::Link)) => return Err(DiskProblem::NeedsMachine("a path leads through a link")),
            };
        }
        Ok(Some(found))
    }

    pub(super) fn make_directory(&mut self, path: &[u8], owner: Owner) -> Outcome<()> {
        let path = normal(path)?;
        self.make_levels(&path, owner)
    }

    /// Makes the directories of a normal path that are missing.
    fn make_levels(&mut self, path: &[u8], owner: Owner) -> Outcome<()> {
        for level in levels(path) {
            match self.known.get(level) {
                Some(Known::Directory { .. }) => {}
                None => self.add_directory(directory(level.to_vec(), 0o755, owner))?,
                Some(_) => return Err(DiskProblem::NeedsMachine("a path leads through a link or a file")),
            }
        }
        Ok(())
    }

    /// Adds a directory, whose parents exist.
    fn add_directory(&mut self, entry: Entry) -> Outcome<()> {
        self.state_parents(&entry.path)?;
        self.write_directory(&entry)?;
        let (path, layer) = (entry.path.clone(), self.layer);
        Ok(self.insert(path, Known::Directory { entry: Box::new(entry), layer })?)
    }

    /// Writes the directories above a path into the layer as the image has them: some programs that unpack
    /// layers give other modes to directories that a layer does not have.
    fn state_parents(&mut self, path: &[u8]) -> Outcome<()> {
        for level in levels(path).take_while(|level| level.len() < path.len()) {
            let stated = match self.known.get_mut(level) {
                Some(Known::Directory { entry, layer }) if *layer != self.layer => {
                    *layer = self.layer;
                    entry.clone()
                }
                _ => continue,
            };
            self.write_directory(&stated)?;
        }
        Ok(())
    }

    fn write_directory(&mut self, entry: &Entry) -> Outcome<()> {
        let writer = self.writer.as_mut().ok_or_else(|| io::Error::other("no layer is open"))?;
        // As other programs write it.
        writer.begin(&Entry { path: [&entry.path[..], b"/"].concat(), ..entry.clone() })?;
        Ok(writer.end()?)
    }

    /// Adds the files of an archive, as the agent extracts them.
    pub(super) fn extract(&mut self, archive: File) -> Outcome<()> {
        let mut reader = Reader::new(BufReader::with_capacity(1 << 16, archive));
        while let Some(mut entry) = reader.next_entry()? {
            entry.path = normal(&entry.path)?;
            let (above, _) = split(&entry.path);
            let above = above.to_vec();
            self.make_levels(&above, Owner::default())?;
            match (&entry.kind, self.known.get(&entry.path)) {
                // Existing directories are unchanged, and so is the root.
                (Kind::Directory, Some(Known::Directory { .. })) => {}
                (Kind::Directory, _) if entry.path.is_empty() => {}
                (Kind::Directory, None) => self.add_directory(entry)?,
                (Kind::Directory, _) => {
                    return Err(DiskProblem::NeedsMachine("a directory has the name of another file"));
                }
                (_, Some(Known::Directory { .. })) => {
                    return Err(DiskProblem::NeedsMachine("a file has the name of a directory"));
                }
                _ if entry.path.is_empty() => return Err(DiskProblem::NeedsMachine("the root is not a file")),
                _ => self.add_file(&mut reader, entry)?,
            }
        }
        Ok(())
    }

    fn add_file(&mut self, reader: &mut Reader<BufReader<File>>, mut entry: Entry) -> Outcome<()> {
        let known = match &entry.kind {
            Kind::File { extents: None, .. } | Kind::Fifo => Known::File { layer: self.layer },
            Kind::Symlink(target) if !target.is_empty() && !target.contains(&0) => Known::Link,
            // 0:0 is a whiteout to an overlay file system.
            Kind::Device { is_block, major, minor } if *is_block || (*major, *minor) != (0, 0) => {
                Known::File { layer: self.layer }
            }
            Kind::HardLink(other) => {
                let other = normal(other)?;
                match self.known.get(&other) {
                    Some(Known::File { layer }) if *layer == self.layer => {}
                    _ => return Err(DiskProblem::NeedsMachine("a hard link is to a file of another layer")),
                }
                entry.kind = Kind::HardLink(other);
                Known::File { layer: self.layer }
            }
            _ => return Err(DiskProblem::NeedsMachine("a file is of a kind that only a machine makes or refuses")),
        };
        self.content += entry.kind.stored();
        if self.content > MAX_CONTENT {
            let maximum = MAX_CONTENT >> 30;
            return Err(StepProblem::Unsupported(format!("a layer of more than {maximum} GiB")).into());
        }
        self.state_parents(&entry.path)?;
        let writer = self.writer.as_mut().ok_or_else(|| io::Error::other("no layer is open"))?;
        writer.begin(&entry)?;
        let mut buffer = [0; 1 << 16];
        loop {
            match reader.read_content(&mut buffer)? {
                0 => break,
                count => writer.content(&buffer[..count])?,
            }
        }
        writer.end()?;
        Ok(self.insert(entry.path, known)?)
    }
}

/// Splits a normal path into the part above the last name, and that name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_an_image_makes_it_keep_is_counted() {
        let mut writer = Writer::new(tempfile::tempfile().unwrap());
        let attributes = vec![(b"user.a".to_vec(), vec![b'v'; 50_000])];
        writer.begin(&Entry { attributes, ..directory("etc".into(), 0o755, Owner::default()) }).unwrap();
        writer.end().unwrap();
        let mut list = writer.finish().unwrap();
        list.rewind().unwrap();
        assert_eq!(Names::read(list).unwrap().name_bytes, 2 * 3 + 6 + 50_000);
        let mut names = Names { name_bytes: MAX_NAMES.1, ..Names::default() };
        assert!(matches!(names.insert(b"x".to_vec(), Known::Link), Err(StepProblem::Unsupported(_))));
    }
}
