//! The extents of files with holes: found in files, checked in archives, and written in the format
//! of pax.

use crate::entry::Extent;
use rustix::{
    fd::BorrowedFd,
    fs::{SeekFrom, seek},
    io::Errno,
};

/// Maximum number of extents of one file. If a file has more, its last holes are packed as data. An
/// archive with more is refused.
pub(crate) const MAX_EXTENTS: usize = 16 * 1024;

/// Returns the extents of an open file of `size` bytes, or `None` if it has no holes or they cannot
/// be found.
pub(crate) fn find(file: BorrowedFd<'_>, size: u64) -> Option<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let offset = match seek(file, SeekFrom::Data(at)) {
            Ok(offset) => offset.min(size),
            // There is no more data.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let is_last = extents.len() + 1 == MAX_EXTENTS;
        let end = if is_last { size } else { seek(file, SeekFrom::Hole(offset)).ok()?.min(size) };
        if end > offset {
            extents.push(Extent { offset, len: end - offset });
        } else if offset < size {
            // There is too much data, because another process changes the file.
            return None;
        }
        at = end.max(offset);
    }
    let is_whole = matches!(extents.as_slice(), [Extent { offset: 0, len }] if *len == size);
    (!is_whole).then_some(extents)
}

/// Returns true when the extents are ascending and within `size`.
pub(crate) fn are_valid(extents: &[Extent], size: u64) -> bool {
    let mut end = 0;
    extents.iter().all(|extent| {
        let is_behind = extent.offset >= end;
        match extent.offset.checked_add(extent.len) {
            Some(its_end) if its_end <= size => end = its_end,
            _ => return false,
        }
        is_behind
    })
}

/// Returns the map at the beginning of the data of a sparse file in pax, format 1.0. If the file
/// ends with a hole, a last, empty extent states where it ends, because GNU tar takes the length
/// from there.
pub(crate) fn map(extents: &[Extent], size: u64) -> String {
    let end = extents.last().map_or(0, |last| last.offset.saturating_add(last.len));
    let last = (end != size).then_some(Extent { offset: size, len: 0 });
    let lines = extents.iter().chain(&last).map(|extent| format!("{}\n{}\n", extent.offset, extent.len));
    std::iter::once(format!("{}\n", extents.len() + usize::from(last.is_some()))).chain(lines).collect()
}

/// Reads such a map, block by block.
#[derive(Debug, Default)]
pub(crate) struct MapReader {
    number: Option<u64>,
    count: Option<u64>,
    offset: Option<u64>,
    extents: Vec<Extent>,
}

/// The bytes are not a map.
#[derive(Debug)]
pub(crate) struct NotAMap;

impl MapReader {
    /// Reads the next block. Returns true if the map ended in it. The rest of the block is padding.
    pub(crate) fn push(&mut self, block: &[u8]) -> Result<bool, NotAMap> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let sum = self.number.unwrap_or(0).checked_mul(10).ok_or(NotAMap)?;
                    self.number = Some(sum.checked_add(u64::from(byte - b'0')).ok_or(NotAMap)?);
                }
                b'\n' => {
                    let number = self.number.take().ok_or(NotAMap)?;
                    if self.line(number)? {
                        return Ok(true);
                    }
                }
                _ => return Err(NotAMap),
            }
        }
        Ok(false)
    }

    fn line(&mut self, number: u64) -> Result<bool, NotAMap> {
        let Some(count) = self.count else {
            if number > MAX_EXTENTS as u64 + 1 {
                return Err(NotAMap);
            }
            self.count = Some(number);
            return Ok(number == 0);
        };
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => self.extents.push(Extent { offset, len: number }),
        }
        Ok(self.extents.len() as u64 == count)
    }

    /// Returns the extents of the map.
    pub(crate) fn into_extents(mut self) -> Vec<Extent> {
        self.extents.retain(|extent| extent.len > 0);
        self.extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::{Seek, SeekFrom, Write},
        os::fd::AsFd,
    };

    #[test]
    fn holes_are_found() {
        let mut file: File = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.set_len(4 << 20).unwrap();
        let extents = find(file.as_fd(), 4 << 20);
        assert_eq!(extents, Some(vec![Extent { offset: 1 << 20, len: 4096 }]));
        file.set_len(0).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(find(file.as_fd(), 1 << 20), Some(vec![]));
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&vec![1; 1 << 20]).unwrap();
        assert_eq!(find(file.as_fd(), 1 << 20), None);
    }

    #[test]
    fn a_map_is_the_same_after_its_text_was_read_in_pieces() {
        let extents = vec![Extent { offset: 0, len: 5 }, Extent { offset: 1 << 40, len: 7 }];
        assert_eq!(map(&extents, (1 << 40) + 7).lines().count(), 5);
        let text = map(&extents, u64::MAX);
        assert!(text.ends_with(&format!("\n{}\n0\n", u64::MAX)));
        for cut in 1..text.len() {
            let mut reader = MapReader::default();
            assert!(!reader.push(&text.as_bytes()[..cut]).unwrap());
            assert!(reader.push(&text.as_bytes()[cut..]).unwrap());
            assert_eq!(reader.into_extents(), extents);
        }
        for text in ["x\n", "\n", "1\n\n", "99999999\n", "1\n99999999999999999999999\n1\n"] {
            assert!(MapReader::default().push(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn extents_are_in_order_and_within_the_file() {
        let of =
            |pairs: &[(u64, u64)]| pairs.iter().map(|(offset, len)| Extent { offset: *offset, len: *len }).collect();
        let valid = |pairs: &[(u64, u64)], size| {
            let extents: Vec<Extent> = of(pairs);
            are_valid(&extents, size)
        };
        assert!(valid(&[], 0) && valid(&[(0, 3), (3, 0), (5, 5)], 10));
        for pairs in [&[(5, 6)][..], &[(u64::MAX, 2)], &[(4, 2), (5, 1)], &[(4, 2), (0, 1)]] {
            assert!(!valid(pairs, 10), "{pairs:?}");
        }
    }
}
