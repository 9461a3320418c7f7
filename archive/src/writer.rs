//! Writes entries as bytes: POSIX pax, with records only for values that do not fit a plain header.

use crate::{
    entry::{Entry, Kind},
    header::{self, BLOCK, Fields},
    reader::ATTRIBUTE,
    records, sparse,
};
use std::io::{self, Write};

/// Writes an archive. Content may be written in pieces of any length.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    /// Number of bytes of the current entry's content that are missing.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Writes to `output`, which should be buffered.
    pub fn new(output: W) -> Self {
        Self { output, left: 0, padding: 0 }
    }

    /// Begins an entry. Its content ([`Kind::stored`]) must follow.
    ///
    /// # Errors
    /// Fails if the output does.
    pub fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        debug_assert_eq!(self.left, 0, "the content of the entry before is whole");
        let mut pax = Vec::new();
        let (kind, link) = match &entry.kind {
            Kind::File { .. } => (header::FILE, &b""[..]),
            Kind::Directory => (header::DIRECTORY, &b""[..]),
            Kind::Symlink(to) => (header::SYMLINK, &to[..]),
            Kind::HardLink(to) => (header::HARD_LINK, &to[..]),
            Kind::Device { is_block: true, .. } => (header::BLOCK_DEVICE, &b""[..]),
            Kind::Device { is_block: false, .. } => (header::CHARACTER_DEVICE, &b""[..]),
            Kind::Fifo => (header::FIFO, &b""[..]),
            Kind::Other(kind) => (*kind, &b""[..]),
        };
        let mut stored = entry.kind.stored();
        let mut map = Vec::new();
        let mut path = entry.path.clone();
        if let Kind::File { size, extents: Some(extents) } = &entry.kind {
            map = sparse::map(extents, *size).into_bytes();
            map.resize(map.len().next_multiple_of(BLOCK), 0);
            stored += map.len() as u64;
            records::push(&mut pax, b"GNU.sparse.major", b"1");
            records::push(&mut pax, b"GNU.sparse.minor", b"0");
            records::push(&mut pax, b"GNU.sparse.name", &entry.path);
            records::push(&mut pax, b"GNU.sparse.realsize", size.to_string().as_bytes());
            // A program that does not support this extracts another name, so it does not overwrite
            // the file.
            path = [b"GNUSparseFile.0/", &entry.path[..]].concat();
        } else if path.len() > header::MAX_NAME {
            records::push(&mut pax, b"path", &path);
        }
        if link.len() > header::MAX_NAME {
            records::push(&mut pax, b"linkpath", link);
        }
        if stored > header::MAX_SIZE {
            records::push(&mut pax, b"size", stored.to_string().as_bytes());
        }
        for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
            if u64::from(id) > header::MAX_ID {
                records::push(&mut pax, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        let seconds = u64::try_from(entry.modified.seconds);
        if entry.modified.nanoseconds != 0 || seconds.is_err() {
            let text = records::time_text(entry.modified.seconds, entry.modified.nanoseconds);
            records::push(&mut pax, b"mtime", text.as_bytes());
        }
        for (name, value) in &entry.attributes {
            records::push(&mut pax, &[ATTRIBUTE, name].concat(), value);
        }
        let fields = |path, link, kind, size| Fields {
            path,
            link,
            kind,
            mode: entry.mode,
            uid: u64::from(entry.uid),
            gid: u64::from(entry.gid),
            size,
            mtime: seconds.unwrap_or(0),
            device: if let Kind::Device { major, minor, .. } = entry.kind { (major, minor) } else { (0, 0) },
        };
        if !pax.is_empty() {
            self.output.write_all(&fields(b"PaxHeaders/entry", b"", header::PAX, pax.len() as u64).to_block())?;
            pax.resize(pax.len().next_multiple_of(BLOCK), 0);
            self.output.write_all(&pax)?;
        }
        self.output.write_all(&fields(&path, link, kind, stored).to_block())?;
        self.output.write_all(&map)?;
        self.left = entry.kind.stored();
        self.padding = (BLOCK - (self.left % BLOCK as u64) as usize) % BLOCK;
        Ok(())
    }

    /// Writes content of the current entry. Bytes beyond its size are ignored.
    ///
    /// # Errors
    /// Fails if the output does.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.output.write_all(&bytes[..len])?;
        self.left -= len as u64;
        Ok(())
    }

    /// Ends the current entry.
    ///
    /// # Errors
    /// Fails if the output does, or if some of the content is missing.
    pub fn end(&mut self) -> io::Result<()> {
        if self.left > 0 {
            let problem = format!("{} bytes of an entry's content are missing", self.left);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        self.output.write_all(&[0; BLOCK][..std::mem::take(&mut self.padding)])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Fails if the output does.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }
}
