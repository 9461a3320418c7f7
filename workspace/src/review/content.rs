//! Contents of files before and after the changes, read in place: at offsets of layers and of the
//! archive. Owns the open files, the check of each content against its digest, and how much of it may be
//! in memory.

use crate::index::{Content, Digest, Kind};
use crate::review::layer::State;
use sha2::{Digest as _, Sha256};
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
    /// Digest of what was read, and the one that all of it has to have.
    check: Option<(Sha256, Digest)>,
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
        if let Some((digest, _)) = &mut self.check {
            digest.update(&buffer[..count]);
        }
        if self.left == 0
            && let Some((digest, expected)) = self.check.take()
            && digest.finalize()[..] != expected
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the content does not have the digest that it had"));
        }
        Ok(count)
    }
}

impl Sources {
    /// Reads the content of a regular file. The read of its end fails if it is not the one of the digest.
    pub(crate) fn content(&self, content: &Content) -> ContentReader<'_> {
        let source = self.0.get(usize::from(content.layer)).map_or(Source::Missing, Source::File);
        ContentReader {
            source,
            offset: content.offset,
            left: content.size,
            check: Some((Sha256::new(), content.digest)),
        }
    }

    /// Reads the content that git sees: that of a file, or the target of a link.
    pub(crate) fn of<'a>(&'a self, state: Option<&'a State>) -> ContentReader<'a> {
        match state.map(|state| &state.kind) {
            Some(Kind::File(content)) => self.content(content),
            Some(Kind::Symlink(target)) => {
                ContentReader { source: Source::Bytes(target), offset: 0, left: target.len() as u64, check: None }
            }
            _ => ContentReader { source: Source::Bytes(b""), offset: 0, left: 0, check: None },
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_content_with_another_digest_is_not_shown() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before text after").unwrap();
        let sources = Sources(vec![file]);
        let state = |digest| {
            let content = Content { size: 4, digest, layer: 0, offset: 7 };
            State { kind: Kind::File(content), mode: 0o644 }
        };
        let right = state(Sha256::digest(b"text").into());
        assert_eq!(sources.text(Some(&right)).unwrap().unwrap(), b"text");
        let error = sources.text(Some(&state(Sha256::digest(b"TEXT").into()))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
