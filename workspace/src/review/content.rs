//! Contents of files before and after the changes, read in place: at offsets of layers and of the
//! archive. Owns the open files, and how much of a content may be in memory.

use crate::index::{Content, Kind};
use crate::review::layer::State;
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

/// Maximum size in bytes of a file that is compared line by line. Larger ones are shown as binary.
pub const MAX_TEXT: u64 = 8 << 20;
/// A file is binary if these many bytes at its beginning contain a NUL byte, as for git.
const EXAMINED: u64 = 8000;

/// The files in which contents lie.
#[derive(Debug, Default)]
pub(crate) struct Sources(pub(crate) Vec<File>);

/// A content that is being read.
#[derive(Debug)]
pub struct ContentReader<'a> {
    source: Source<'a>,
    offset: u64,
    left: u64,
}

#[derive(Debug)]
enum Source<'a> {
    File(&'a File),
    Bytes(&'a [u8]),
    Missing,
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = match self.source {
            Source::File(file) => file.read_at(&mut buffer[..wanted], self.offset)?,
            Source::Bytes(bytes) => {
                let bytes = bytes.get(usize::try_from(self.offset).unwrap_or(usize::MAX)..).unwrap_or_default();
                let count = wanted.min(bytes.len());
                buffer[..count].copy_from_slice(&bytes[..count]);
                count
            }
            Source::Missing => 0,
        };
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file of a content is cut short"));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

impl Sources {
    /// Reads the content of a regular file.
    pub(crate) fn content(&self, content: &Content) -> ContentReader<'_> {
        let source = self.0.get(usize::from(content.layer)).map_or(Source::Missing, Source::File);
        ContentReader { source, offset: content.offset, left: content.size }
    }

    /// Reads the content that git sees: that of a file, or the target of a link.
    pub(crate) fn of<'a>(&'a self, state: Option<&'a State>) -> ContentReader<'a> {
        match state.map(|state| &state.kind) {
            Some(Kind::File(content)) => self.content(content),
            Some(Kind::Symlink(target)) => {
                ContentReader { source: Source::Bytes(target), offset: 0, left: target.len() as u64 }
            }
            _ => ContentReader { source: Source::Bytes(b""), offset: 0, left: 0 },
        }
    }

    /// Returns the text of a file if it is one, and not too large.
    pub(crate) fn text(&self, state: Option<&State>) -> io::Result<Option<Vec<u8>>> {
        let mut reader = self.of(state);
        if reader.left > MAX_TEXT {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        (&mut reader).take(EXAMINED).read_to_end(&mut bytes)?;
        if bytes.contains(&0) {
            return Ok(None);
        }
        reader.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// Returns the size of the content that git sees.
pub(crate) fn size(state: Option<&State>) -> u64 {
    match state.map(|state| &state.kind) {
        Some(Kind::File(content)) => content.size,
        Some(Kind::Symlink(target)) => target.len() as u64,
        _ => 0,
    }
}
