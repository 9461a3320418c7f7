//! The bytes of an archive, plain or with gzip. May return no more of them than the limits say, also
//! of members that are skipped: a few kilobytes of gzip can stand for gigabytes.

use super::error::LoadError;
use flate2::read::MultiGzDecoder;
use sandboxvm_archive::ReadError;
use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
};

/// Maximum ratio of uncompressed to compressed bytes. Deflate reaches 1032, and only for content
/// that is nearly constant.
const RATIO: u64 = 250;
/// Number of uncompressed bytes up to which their ratio is not limited.
const RATIO_FROM: u64 = 64 << 20;
/// Bytes of an archive in addition to those of its members: headers and what is skipped.
const OVERHEAD: u64 = 64 << 20;

/// Why no more bytes are returned.
#[derive(Debug, thiserror::Error)]
enum Exceeded {
    #[error("more than {0} bytes")]
    Size(u64),
    #[error("its content is more than {RATIO} times its size")]
    Ratio,
}

/// Counts bytes.
struct Counted<R> {
    input: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count.set(self.count.get().saturating_add(count as u64));
        Ok(count)
    }
}

/// The uncompressed bytes.
pub(super) struct Input<'a> {
    input: Box<dyn Read + 'a>,
    compressed: Option<Rc<Cell<u64>>>,
    count: u64,
    maximum: u64,
}

impl<'a> Input<'a> {
    /// Opens an archive whose members have at most `maximum` bytes together.
    pub(super) fn open(input: impl Read + 'a, maximum: u64) -> Result<Self, LoadError> {
        let compressed = Rc::new(Cell::new(0));
        let mut input = BufReader::with_capacity(1 << 16, Counted { input, count: compressed.clone() });
        let is_gzip = input.fill_buf().map_err(LoadError::Input)?.starts_with(&[0x1f, 0x8b]);
        let maximum = maximum.saturating_add(OVERHEAD);
        Ok(if is_gzip {
            Self { input: Box::new(MultiGzDecoder::new(input)), compressed: Some(compressed), count: 0, maximum }
        } else {
            Self { input: Box::new(input), compressed: None, count: 0, maximum }
        })
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count = self.count.saturating_add(count as u64);
        if self.count > self.maximum {
            return Err(io::Error::other(Exceeded::Size(self.maximum)));
        }
        let limit = self.compressed.as_ref().map_or(u64::MAX, |compressed| compressed.get().saturating_mul(RATIO));
        if self.count > RATIO_FROM && self.count > limit {
            return Err(io::Error::other(Exceeded::Ratio));
        }
        Ok(count)
    }
}

/// Returns the error of reading an archive, which may be that of a limit.
pub(super) fn failure(error: ReadError) -> LoadError {
    let exceeded = match &error {
        ReadError::Input(error) => error.get_ref().and_then(|error| error.downcast_ref::<Exceeded>()),
        _ => None,
    };
    match exceeded {
        Some(exceeded) => LoadError::TooLarge(exceeded.to_string()),
        None => error.into(),
    }
}
