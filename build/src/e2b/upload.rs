//! The archive that a client uploads for a `COPY`: tar, plain or with gzip, with paths relative to the
//! client's context. Hostile: it is rewritten entry by entry, within a size, and never unpacked here.

use crate::engine::StepProblem;
use flate2::read::MultiGzDecoder;
use sandboxvm_archive::{Entry, Kind, Reader, Timestamp, Writer};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
};

/// Maximum number of entries.
const MAX_ENTRIES: usize = 1_000_000;
/// Maximum size in bytes of the paths of all directories.
const MAX_DIRECTORIES: usize = 64 << 20;

/// Writes the archive to `output` as a machine would pack it: with its tree at `x`, and with every
/// directory that it names.
pub(super) fn rooted(mut file: File, max_bytes: u64, output: File) -> Result<File, StepProblem> {
    let mut magic = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(2).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let file = BufReader::new(file);
    let input: Box<dyn Read + Send> =
        if magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut reader = Reader::new(Bounded { input, left: max_bytes });
    let mut rooting = Rooting { writer: Writer::new(output), directories: BTreeSet::new(), bytes: 0 };
    rooting.directory(b"x")?;
    let mut count = 0;
    while let Some(mut entry) = reader.next_entry()? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(StepProblem::Unsupported(format!("an upload of more than {MAX_ENTRIES} entries")));
        }
        let path = below_root(&entry.path)?;
        if let Some(slash) = path.iter().rposition(|byte| *byte == b'/') {
            rooting.directory(&path[..slash])?;
        }
        match &entry.kind {
            Kind::Directory if rooting.directories.contains(&path) => continue,
            Kind::Directory => rooting.note(&path)?,
            Kind::HardLink(other) => entry.kind = Kind::HardLink(below_root(other)?),
            Kind::File { .. } | Kind::Symlink(_) => {}
            Kind::Device { .. } | Kind::Fifo | Kind::Other(_) => {
                return Err(StepProblem::Unsupported("an upload with a device, pipe or unknown file".into()));
            }
        }
        entry.path = path;
        rooting.writer.begin(&entry)?;
        let mut buffer = [0; 16 << 10];
        loop {
            match reader.read_content(&mut buffer)? {
                0 => break,
                count => rooting.writer.content(&buffer[..count])?,
            }
        }
        rooting.writer.end()?;
    }
    Ok(rooting.writer.finish()?)
}

struct Rooting {
    writer: Writer<File>,
    directories: BTreeSet<Vec<u8>>,
    /// Size of the paths in `directories`.
    bytes: usize,
}

impl Rooting {
    fn note(&mut self, path: &[u8]) -> Result<(), StepProblem> {
        self.bytes += path.len();
        if self.bytes > MAX_DIRECTORIES {
            return Err(StepProblem::Unsupported("an upload with so many directories".into()));
        }
        self.directories.insert(path.to_vec());
        Ok(())
    }

    /// Adds a directory and those above it, unless the archive has them already.
    fn directory(&mut self, path: &[u8]) -> Result<(), StepProblem> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let path = &path[..end];
            if self.directories.contains(path) {
                continue;
            }
            self.note(path)?;
            let (path, kind, modified) = (path.to_vec(), Kind::Directory, Timestamp::default());
            let entry = Entry { path, kind, mode: 0o755, uid: 0, gid: 0, modified, attributes: Vec::new() };
            self.writer.begin(&entry)?;
            self.writer.end()?;
        }
        Ok(())
    }
}

fn below_root(path: &[u8]) -> Result<Vec<u8>, StepProblem> {
    let parts: Vec<_> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(StepProblem::Unsupported("a path with .. in an upload".into()));
    }
    Ok([&[&b"x"[..]], &parts[..]].concat().join(&b'/'))
}

/// Fails after so many bytes.
struct Bounded<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other("the upload is too large"))?;
        Ok(count)
    }
}
