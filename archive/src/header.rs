//! The header of 512 bytes that begins every entry: fields, numbers and checksum (tar(5), pax(1)).

use std::ops::Range;

pub(crate) const BLOCK: usize = 512;
pub(crate) type Block = [u8; BLOCK];

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

/// Sparse files of old GNU tar: four extents, whether blocks with more extents follow, and the size
/// with holes.
pub(crate) const GNU_EXTENTS: usize = 386;
const GNU_MORE: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;
/// Number of extents in a block of further extents.
pub(crate) const GNU_EXTENTS_IN_BLOCK: usize = 21;
const GNU_MORE_IN_BLOCK: usize = 504;

pub(crate) const FILE: u8 = b'0';
pub(crate) const HARD_LINK: u8 = b'1';
pub(crate) const SYMLINK: u8 = b'2';
pub(crate) const CHARACTER_DEVICE: u8 = b'3';
pub(crate) const BLOCK_DEVICE: u8 = b'4';
pub(crate) const DIRECTORY: u8 = b'5';
pub(crate) const FIFO: u8 = b'6';
pub(crate) const GNU_SPARSE: u8 = b'S';
pub(crate) const GNU_LONG_NAME: u8 = b'L';
pub(crate) const GNU_LONG_LINK: u8 = b'K';
pub(crate) const PAX: u8 = b'x';
pub(crate) const PAX_GLOBAL: u8 = b'g';

/// The fields of a header, not decoded yet.
#[derive(Debug)]
pub(crate) struct Header<'a>(pub(crate) &'a Block);

impl<'a> Header<'a> {
    /// Returns true if the checksum is right.
    pub(crate) fn is_intact(&self) -> bool {
        let stated = number(&self.0[CHECKSUM]);
        stated == Some(checksum(self.0, u64::from)) || stated == Some(checksum(self.0, |b| b as i8 as u64))
    }

    pub(crate) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[NAME]);
        let prefix = text(&self.0[PREFIX]);
        if &self.0[MAGIC] == b"ustar\x0000" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub(crate) fn link(&self) -> &'a [u8] {
        text(&self.0[LINK])
    }

    pub(crate) fn mode(&self) -> Option<u64> {
        number(&self.0[MODE])
    }

    pub(crate) fn uid(&self) -> Option<u64> {
        number(&self.0[UID])
    }

    pub(crate) fn gid(&self) -> Option<u64> {
        number(&self.0[GID])
    }

    pub(crate) fn size(&self) -> Option<u64> {
        number(&self.0[SIZE])
    }

    pub(crate) fn mtime(&self) -> Option<u64> {
        number(&self.0[MTIME])
    }

    /// Returns the major and the minor number of a device. Empty fields are zero.
    pub(crate) fn device(&self) -> Option<(u32, u32)> {
        let half = |field: Range<usize>| u32::try_from(number(&self.0[field])?).ok();
        Some((half(MAJOR)?, half(MINOR)?))
    }

    pub(crate) fn gnu_real_size(&self) -> Option<u64> {
        number(&self.0[GNU_REAL_SIZE])
    }

    pub(crate) fn gnu_more(&self) -> bool {
        self.0[GNU_MORE] != 0
    }
}

/// Returns whether another block of extents follows this one.
pub(crate) fn gnu_more_in_block(block: &Block) -> bool {
    block[GNU_MORE_IN_BLOCK] != 0
}

/// The values of a header, as far as they fit.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
}

impl Fields<'_> {
    /// Encodes the header. Values that do not fit are cut, because pax records state them in full.
    pub(crate) fn to_block(&self) -> Block {
        let mut block = [0; BLOCK];
        put_text(&mut block[NAME], self.path);
        put_number(&mut block[MODE], u64::from(self.mode));
        put_number(&mut block[UID], self.uid);
        put_number(&mut block[GID], self.gid);
        put_number(&mut block[SIZE], self.size);
        put_number(&mut block[MTIME], self.mtime);
        block[TYPE] = self.kind;
        put_number(&mut block[MAJOR], self.device.0.into());
        put_number(&mut block[MINOR], self.device.1.into());
        put_text(&mut block[LINK], self.link);
        block[MAGIC].copy_from_slice(b"ustar\x0000");
        let sum = checksum(&block, u64::from);
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Maximum length of a name that fits a header.
pub(crate) const MAX_NAME: usize = 100;
/// Maximum user ID, group ID and size that fit a header.
pub(crate) const MAX_ID: u64 = (1 << 21) - 1;
pub(crate) const MAX_SIZE: u64 = (1 << 33) - 1;

fn put_text(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Writes octal digits and a NUL. A number that does not fit is replaced by the largest one that
/// does.
fn put_number(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    let largest = (1u64 << (3 * digits).min(63)) - 1;
    let text = format!("{:0digits$o}\0", number.min(largest));
    field.copy_from_slice(text.as_bytes());
}

/// Reads octal digits between blanks, or a number in GNU's binary form. Returns `None` for anything
/// else and for negative numbers.
pub(crate) fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let (first, rest) = field.split_first()?;
        return rest
            .iter()
            .try_fold(u64::from(first & 0x7f), |sum, byte| sum.checked_mul(256).map(|sum| sum | u64::from(*byte)));
    }
    let is_blank = |byte: &&u8| **byte == b' ';
    let digits = &field[field.iter().take_while(is_blank).count()..];
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Returns the sum of all bytes, with blanks in place of the checksum. Some old tar programs used
/// signed bytes.
fn checksum(block: &Block, value: impl Fn(u8) -> u64) -> u64 {
    let byte = |(at, byte): (usize, &u8)| if CHECKSUM.contains(&at) { u64::from(b' ') } else { value(*byte) };
    block.iter().enumerate().map(byte).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_nothing_else() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  755 \0\0"), Some(0o755));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(number(b"-1\0\0\0\0\0\0"), None);
    }

    #[test]
    fn values_that_are_put_into_a_header_are_read_from_it() {
        let fields = Fields {
            path: b"dir/a",
            link: b"",
            kind: FILE,
            mode: 0o4755,
            uid: 1000,
            gid: u64::MAX,
            size: MAX_SIZE,
            mtime: 1_795_312_800,
            device: (7, 8),
        };
        let mut block = fields.to_block();
        let header = Header(&block);
        assert!(header.is_intact());
        assert_eq!((header.path(), header.kind(), header.mode()), (b"dir/a".to_vec(), FILE, Some(0o4755)));
        assert_eq!(header.device(), Some((7, 8)));
        assert_eq!((header.size(), header.gid()), (Some(MAX_SIZE), Some(MAX_ID)));
        block[0] ^= 1;
        assert!(!Header(&block).is_intact());
    }
}
