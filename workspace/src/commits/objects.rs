//! The objects that a sandbox added to its repository, as packs that git reads from a pipe. Loose objects
//! (`.git/objects/ab/…`) are inflated and written as one pack without deltas; packs are passed on as they
//! are. Owns the limits of what is inflated; git checks the rest, when it indexes the packs.

use super::{error::CommitsError, refs::GIT};
use crate::{
    index::Kind,
    review::{Review, ReviewError, compare::Change, content::ContentReader},
};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use sha1::{Digest, Sha1};
use std::io::{self, Read, Write};

/// Maximum size of all loose objects, inflated, in bytes: 8 GiB.
pub(super) const MAX_INFLATED: u64 = 8 << 30;
/// Maximum size in bytes of a commit, tree or tag, which git has in memory as a whole.
const MAX_STRUCTURE: u64 = 64 << 20;
/// The number of blobs in a pack.
const BLOB: u8 = 3;
/// Longest header of a loose object: a kind, a space, a number and a NUL byte.
const MAX_HEADER: usize = 32;

/// The new objects of a sandbox's repository.
#[derive(Debug)]
pub(super) struct Objects<'a> {
    review: &'a Review,
    loose: Vec<&'a Change>,
    packs: Vec<&'a Change>,
}

impl<'a> Objects<'a> {
    pub(super) fn of(review: &'a Review) -> Self {
        let mut objects = Self { review, loose: Vec::new(), packs: Vec::new() };
        for change in &review.changes().git {
            let is_file = matches!(&change.new, Some(state) if matches!(state.kind, Kind::File(_)));
            let path = change.path.strip_prefix(GIT).and_then(|path| path.strip_prefix(b"objects/"));
            match path.filter(|_| is_file) {
                Some(path) if is_loose(path) => objects.loose.push(change),
                Some(path) if path.starts_with(b"pack/pack-") && path.ends_with(b".pack") => objects.packs.push(change),
                _ => {}
            }
        }
        objects
    }

    /// Returns a reader for each pack that the sandbox has. A pack may need objects of another one.
    pub(super) fn packs(&self) -> impl Iterator<Item = ContentReader<'a>> {
        self.packs.iter().map(|change| self.review.sources().of(change.new.as_ref()))
    }

    pub(super) fn has_loose(&self) -> bool {
        !self.loose.is_empty()
    }

    /// Writes the loose objects as a pack (gitformat-pack(5), version 2).
    pub(super) fn write_loose(&self, out: &mut dyn Write) -> Result<(), CommitsError> {
        let mut out = Hashing { out, digest: Sha1::new() };
        let count = u32::try_from(self.loose.len()).map_err(|_| too_large())?;
        out.write_all(b"PACK\0\0\0\x02")?;
        out.write_all(&count.to_be_bytes())?;
        let mut left = MAX_INFLATED;
        for change in &self.loose {
            let problem = |problem| CommitsError::Object { path: change.path.clone(), problem };
            let read = |error| ReviewError::Content { path: change.path.clone(), error };
            let mut content = ZlibDecoder::new(self.review.sources().of(change.new.as_ref()));
            let (kind, size) = header(&mut content).map_err(read)?.ok_or_else(|| problem("it has no header"))?;
            if kind != BLOB && size > MAX_STRUCTURE {
                return Err(problem("it is too large for its kind"));
            }
            left = left.checked_sub(size).ok_or_else(too_large)?;
            out.write_all(&entry_header(kind, size))?;
            let mut packed = ZlibEncoder::new(&mut out, Compression::fast());
            let copied = io::copy(&mut (&mut content).take(size), &mut packed)?;
            if copied != size || content.read(&mut [0]).map_err(read)? != 0 {
                return Err(problem("it does not have the size of its header"));
            }
            packed.finish()?;
        }
        let Hashing { out, digest } = out;
        out.write_all(&digest.finalize())?;
        Ok(out.flush()?)
    }
}

fn too_large() -> CommitsError {
    CommitsError::TooLarge { what: "content of all new objects", limit: MAX_INFLATED }
}

/// Returns true for `ab/cdef…`, the place of a loose object with a SHA-1 name.
fn is_loose(path: &[u8]) -> bool {
    let is_hex = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    path.len() == 41 && path[2] == b'/' && is_hex(&path[..2]) && is_hex(&path[3..])
}

/// Reads the header of a loose object: its kind, as a pack numbers them, and its size.
fn header(content: &mut impl Read) -> io::Result<Option<(u8, u64)>> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while bytes.len() < MAX_HEADER && content.read(&mut byte)? == 1 {
        if byte == [0] {
            return Ok(parsed(&bytes));
        }
        bytes.extend(byte);
    }
    Ok(None)
}

fn parsed(header: &[u8]) -> Option<(u8, u64)> {
    let (kind, size) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    let kind = match kind {
        "commit" => 1,
        "tree" => 2,
        "blob" => BLOB,
        "tag" => 4,
        _ => return None,
    };
    Some((kind, size.parse().ok()?))
}

/// Returns the header of an entry of a pack: the size in groups of 4, 7, 7, … bits, the lowest first.
fn entry_header(kind: u8, size: u64) -> Vec<u8> {
    let mut bytes = vec![kind << 4 | (size & 15) as u8];
    let mut rest = size >> 4;
    while rest > 0 {
        if let Some(last) = bytes.last_mut() {
            *last |= 0x80;
        }
        bytes.push((rest & 0x7f) as u8);
        rest >>= 7;
    }
    bytes
}

/// Hashes what is written.
struct Hashing<W> {
    out: W,
    digest: Sha1,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.digest.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_objects_are_objects() {
        assert!(is_loose(b"ab/0123456789abcdef0123456789abcdef012345"));
        for path in [
            &b"ab/0123456789abcdef0123456789abcdef01234"[..],
            b"pack/x",
            b"info/alternates",
            b"ab/tmp_obj_0123456789abcdef0123456789ab012345",
        ] {
            assert!(!is_loose(path), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn sizes_of_entries_are_written_as_git_reads_them() {
        assert_eq!(entry_header(3, 15), [0x3f]);
        assert_eq!(entry_header(1, 16), [0x90, 0x01]);
        assert_eq!(entry_header(3, 0x1234), [0xb4, 0xa3, 0x02]);
    }

    #[test]
    fn headers_of_other_kinds_are_refused() {
        assert_eq!(header(&mut &b"blob 12\0x"[..]).unwrap(), Some((3, 12)));
        for bytes in [
            &b"blub 12\0"[..],
            b"blob -1\0",
            b"blob 99999999999999999999\0",
            b"blob",
            b"blob 1111111111111111111111111111111111\0",
        ] {
            assert_eq!(header(&mut &bytes[..]).unwrap(), None);
        }
    }
}
