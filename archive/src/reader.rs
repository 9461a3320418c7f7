//! Reads entries from bytes. The stream may be hostile: the reader has at most one block, the names
//! and attributes of one entry (at most [`MAX_RECORDS`]) and one map of extents in memory, and it
//! checks every number before it uses it.

use crate::{
    entry::{Entry, Extent, Kind, MAX_PATH, Timestamp},
    header::{self, BLOCK, Block, Header},
    records,
    sparse::{self, MapReader},
};
use std::io::{self, Read};

/// Maximum size in bytes of the headers before an entry that describe it, with its names and
/// attributes.
const MAX_RECORDS: u64 = 1 << 20;
/// Prefix of extended attributes in pax records.
pub(crate) const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// Why bytes are not an archive.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed.
    #[error("cannot read the archive: {0}")]
    Input(#[from] io::Error),
    /// The archive ends within an entry.
    #[error("the archive is cut short")]
    CutShort,
    /// The archive is damaged, or the bytes are not a tar archive.
    #[error("the archive is damaged, or is no tar archive: {0}")]
    Damaged(&'static str),
    /// The archive contains something that this reader does not support.
    #[error("the archive holds {0}")]
    NotSupported(&'static str),
}

/// Reads an archive, entry by entry.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Number of bytes of the current entry's content that were not read yet.
    left: u64,
    /// Number of bytes after the content, up to the next header.
    padding: u64,
    ended: bool,
    keeps_all_attributes: bool,
}

/// What the headers before an entry state about it.
#[derive(Debug, Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified: Option<Timestamp>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    keeps_all_attributes: bool,
    sparse: PaxSparse,
}

#[derive(Debug, Default)]
struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    /// Offsets and lengths of the forms 0.0 and 0.1, which keep the map in records.
    map: Option<Vec<u64>>,
}

impl PaxSparse {
    fn push(&mut self, number: u64) {
        self.map.get_or_insert_default().push(number);
    }
}

impl<R: Read> Reader<R> {
    /// Reads from `input`. Buffering it makes headers faster, but not content.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, ended: false, keeps_all_attributes: false }
    }

    /// Also returns extended attributes outside `user.`, which belong to the system that wrote the
    /// archive. The caller decides about each of them.
    #[must_use]
    pub fn keep_all_attributes(self) -> Self {
        Self { keeps_all_attributes: true, ..self }
    }

    /// Returns the next entry, or `None` at the archive's end. Skips the unread content of the
    /// entry before.
    ///
    /// # Errors
    /// Every [`ReadError`]. Nothing more can be read after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut overrides = Overrides { keeps_all_attributes: self.keeps_all_attributes, ..Overrides::default() };
        let mut spent = 0;
        loop {
            self.skip(self.left)?;
            self.left = 0;
            let padding = std::mem::take(&mut self.padding);
            self.skip(padding)?;
            let Some(block) = self.next_header()? else { return Ok(None) };
            let header = Header(&block);
            let size = header.size().ok_or(ReadError::Damaged("the size of an entry is not a number"))?;
            let kind = header.kind();
            if !matches!(kind, header::PAX | header::GNU_LONG_NAME | header::GNU_LONG_LINK | header::PAX_GLOBAL) {
                return self.entry(&header, size, overrides).map(Some);
            }
            // Limits all headers of an entry together, so that memory and time are bounded.
            spent = size.saturating_add(spent).saturating_add(BLOCK as u64);
            if spent > MAX_RECORDS {
                return Err(ReadError::Damaged("the names or attributes of an entry are too long"));
            }
            match kind {
                header::PAX => self.content(size).and_then(|bytes| overrides.take(&bytes))?,
                header::GNU_LONG_NAME => overrides.path = Some(self.long_name(size)?),
                header::GNU_LONG_LINK => overrides.link = Some(self.long_name(size)?),
                // Not about an entry, so it is skipped.
                _ => self.begin_content(size)?,
            }
        }
    }

    /// Reads content of the current entry, of a file with holes only the data. Returns 0 at its
    /// end.
    ///
    /// # Errors
    /// Fails if the archive ends before its entry, or cannot be read.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(ReadError::CutShort);
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Returns the input, to ask it how far it was read.
    pub fn input(&self) -> &R {
        &self.input
    }

    /// Returns the input.
    pub fn into_input(self) -> R {
        self.input
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return Ok(read?),
            }
        }
    }

    /// Fills `block`. Returns false if the input has ended before its first byte.
    fn read_block(&mut self, block: &mut Block) -> Result<bool, ReadError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(ReadError::CutShort),
                count => filled += count,
            }
        }
        Ok(true)
    }

    fn next_header(&mut self) -> Result<Option<Block>, ReadError> {
        let mut block = [0; BLOCK];
        // A block of zeros ends an archive. Some archives end without one.
        if self.ended || !self.read_block(&mut block)? || block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        if Header(&block).is_intact() { Ok(Some(block)) } else { Err(ReadError::Damaged("a checksum is wrong")) }
    }

    fn skip(&mut self, mut count: u64) -> Result<(), ReadError> {
        let mut buffer = [0; 8 * 1024];
        while count > 0 {
            let wanted = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            match self.read(&mut buffer[..wanted])? {
                0 => return Err(ReadError::CutShort),
                read => count -= read as u64,
            }
        }
        Ok(())
    }

    fn begin_content(&mut self, size: u64) -> Result<(), ReadError> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        if size.checked_add(padding).is_none() {
            return Err(ReadError::Damaged("the size of an entry is out of all bounds"));
        }
        self.left = size;
        self.padding = padding;
        Ok(())
    }

    /// Reads the complete content of a header that describes another one. Its size was limited
    /// before.
    fn content(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        self.begin_content(size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read_content(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        let mut name = self.content(size)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn entry(&mut self, header: &Header<'_>, size: u64, overrides: Overrides) -> Result<Entry, ReadError> {
        let size = overrides.size.unwrap_or(size);
        let is_pax_sparse = overrides.sparse.major.is_some() || overrides.sparse.map.is_some();
        let path = overrides.sparse.name.filter(|_| is_pax_sparse).or(overrides.path);
        let path = path.unwrap_or_else(|| header.path());
        let is_directory = path.ends_with(b"/");
        let link = overrides.link.unwrap_or_else(|| header.link().to_vec());
        let kind = match header.kind() {
            // Before ustar, a directory was a file whose name ended with '/'.
            0 | header::FILE if is_directory => Kind::Directory,
            0 | header::FILE | b'7' if is_pax_sparse => {
                let PaxSparse { major, minor, real_size, map, .. } = overrides.sparse;
                let real_size = real_size.ok_or(ReadError::Damaged("a sparse file has no size"))?;
                match (major, minor, map) {
                    (Some(1), Some(0), None) => self.pax_sparse(size, real_size)?,
                    (None | Some(0), _, Some(map)) => self.pax_sparse_of_records(size, &map, real_size)?,
                    _ => return Err(ReadError::NotSupported("a sparse file of an unknown form")),
                }
            }
            0 | header::FILE | b'7' => {
                self.begin_content(size)?;
                Kind::File { size, extents: None }
            }
            header::GNU_SPARSE => self.gnu_sparse(header, size)?,
            header::HARD_LINK => Kind::HardLink(link),
            header::SYMLINK => Kind::Symlink(link),
            header::DIRECTORY => Kind::Directory,
            // Devices and named pipes have no content, even if their headers state a size.
            kind @ (header::CHARACTER_DEVICE | header::BLOCK_DEVICE) => {
                let (major, minor) = header.device().ok_or(ReadError::Damaged("the number of a device is invalid"))?;
                Kind::Device { is_block: kind == header::BLOCK_DEVICE, major, minor }
            }
            header::FIFO => Kind::Fifo,
            other => {
                self.begin_content(size)?;
                Kind::Other(other)
            }
        };
        let longest = path.len().max(if let Kind::Symlink(to) | Kind::HardLink(to) = &kind { to.len() } else { 0 });
        if longest > MAX_PATH {
            return Err(ReadError::Damaged("a path in it is longer than Linux takes"));
        }
        let not_a_number = ReadError::Damaged("the mode or owner of an entry is not a number");
        let (Some(mode), Some(uid), Some(gid)) =
            (header.mode(), overrides.uid.or(header.uid()), overrides.gid.or(header.gid()))
        else {
            return Err(not_a_number);
        };
        let id = |number| u32::try_from(number).map_err(|_| ReadError::Damaged("an owner does not fit 32 bits"));
        Ok(Entry {
            path,
            kind,
            mode: (mode & 0o7777) as u32,
            uid: id(uid)?,
            gid: id(gid)?,
            // An invalid time is not a reason to refuse a file.
            modified: overrides.modified.unwrap_or_else(|| Timestamp {
                seconds: header.mtime().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0),
                nanoseconds: 0,
            }),
            attributes: overrides.attributes,
        })
    }

    /// Reads the map of a sparse file of format 1.0, at the beginning of the content.
    fn pax_sparse(&mut self, stored: u64, size: u64) -> Result<Kind, ReadError> {
        let damaged = || ReadError::Damaged("the map of a sparse file makes no sense");
        self.begin_content(stored)?;
        let mut map = MapReader::default();
        let mut block = [0; BLOCK];
        loop {
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_content(&mut block[filled..])? {
                    0 => return Err(damaged()),
                    count => filled += count,
                }
            }
            if map.push(&block).map_err(|_| damaged())? {
                break;
            }
        }
        self.sparse(map.into_extents(), size)
    }

    /// Checks the map of a sparse file of format 0.0 or 0.1, which came in its records.
    fn pax_sparse_of_records(&mut self, stored: u64, map: &[u64], size: u64) -> Result<Kind, ReadError> {
        if !map.len().is_multiple_of(2) || map.len() / 2 > sparse::MAX_EXTENTS {
            return Err(ReadError::Damaged("the map of a sparse file makes no sense"));
        }
        self.begin_content(stored)?;
        // An empty extent only states where the file ends.
        let extents = map.chunks_exact(2).map(|pair| Extent { offset: pair[0], len: pair[1] });
        self.sparse(extents.filter(|extent| extent.len > 0).collect(), size)
    }

    /// Reads the map of a sparse file of old GNU tar, in the header and in blocks behind it.
    fn gnu_sparse(&mut self, header: &Header<'_>, stored: u64) -> Result<Kind, ReadError> {
        let damaged = || ReadError::Damaged("the map of a sparse file makes no sense");
        let size = header.gnu_real_size().ok_or_else(damaged)?;
        let mut extents = Vec::new();
        let mut take = |fields: &[u8]| -> Result<(), ReadError> {
            for field in fields.chunks_exact(24).filter(|field| field[0] != 0) {
                let (offset, len) = (header::number(&field[..12]), header::number(&field[12..]));
                let (Some(offset), Some(len)) = (offset, len) else { return Err(damaged()) };
                if extents.len() == sparse::MAX_EXTENTS {
                    return Err(damaged());
                }
                // The last, empty extent only states where the file ends.
                if len > 0 {
                    extents.push(Extent { offset, len });
                }
            }
            Ok(())
        };
        take(&header.0[header::GNU_EXTENTS..header::GNU_EXTENTS + 4 * 24])?;
        let (mut more, mut blocks) = (header.gnu_more(), 0);
        while more {
            let mut block = [0; BLOCK];
            blocks += 1;
            // Blocks may be empty, so their number has a separate limit.
            if blocks > sparse::MAX_EXTENTS || !self.read_block(&mut block)? {
                return Err(damaged());
            }
            take(&block[..header::GNU_EXTENTS_IN_BLOCK * 24])?;
            more = header::gnu_more_in_block(&block);
        }
        self.begin_content(stored)?;
        self.sparse(extents, size)
    }

    fn sparse(&self, extents: Vec<Extent>, size: u64) -> Result<Kind, ReadError> {
        let kind = Kind::File { size, extents: Some(extents) };
        let Kind::File { extents: Some(extents), .. } = &kind else { return Ok(kind) };
        if sparse::are_valid(extents, size) && kind.stored() == self.left {
            Ok(kind)
        } else {
            Err(ReadError::Damaged("the map of a sparse file is not that of its data"))
        }
    }
}

impl Overrides {
    fn take(&mut self, bytes: &[u8]) -> Result<(), ReadError> {
        let damaged = || ReadError::Damaged("a pax record makes no sense");
        for record in records::parse(bytes) {
            let (key, value) = record.map_err(|_| damaged())?;
            let number = || records::decimal(value).ok_or_else(damaged);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => {
                    let (seconds, nanoseconds) = records::time(value).ok_or_else(damaged)?;
                    self.modified = Some(Timestamp { seconds, nanoseconds });
                }
                b"GNU.sparse.major" => self.sparse.major = Some(number()?),
                b"GNU.sparse.minor" => self.sparse.minor = Some(number()?),
                b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
                b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number()?),
                b"GNU.sparse.map" => {
                    let numbers = value.split(|byte| *byte == b',').filter(|text| !text.is_empty());
                    for text in numbers {
                        self.sparse.push(records::decimal(text).ok_or_else(damaged)?);
                    }
                }
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.push(number()?),
                _ => {
                    // By default only attributes that any user may set. Others belong to the system
                    // that wrote the archive.
                    let is_kept = |name: &&[u8]| self.keeps_all_attributes || name.starts_with(b"user.");
                    if let Some(name) = key.strip_prefix(ATTRIBUTE).filter(is_kept) {
                        self.attributes.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}
