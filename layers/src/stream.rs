//! The bytes of one layer, uncompressed, hashed and counted. Owns the decoders and their limits; it
//! never reads more of a layer than its limits allow.

use crate::{
    format::{Format, FormatError},
    limits::{Exceeded, Limits},
};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, BufReader, Read};

/// Size of the buffer of compressed bytes.
const BUFFER: usize = 1 << 20;

/// Counts what is read.
#[derive(Debug)]
struct Counted<R> {
    input: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

/// What was read to see the format, and the rest.
type Source<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, Counted<R>>>;

enum Decoder<R> {
    Tar(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(Box<Frames<R>>),
}

impl<R: Read> Decoder<R> {
    fn source(&self) -> &Counted<R> {
        match self {
            Self::Tar(source) => source.get_ref().get_ref().1,
            Self::Gzip(decoder) => decoder.get_ref().get_ref().get_ref().1,
            Self::Zstd(frames) => frames.source.get_ref().get_ref().1,
        }
    }
}

/// The frames of zstd content, one after the other.
struct Frames<R> {
    decoder: FrameDecoder,
    source: Source<R>,
    is_in_frame: bool,
}

impl<R: Read> Frames<R> {
    /// Begins the next frame. Returns false at the end of the content.
    fn begin(&mut self) -> io::Result<bool> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match self.decoder.init(&mut self.source) {
            Ok(()) => self.is_in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                if skipped < length.into() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(invalid(&error)),
        }
        Ok(true)
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_in_frame {
                if !self.begin()? {
                    return Ok(0);
                }
            } else if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            } else if self.decoder.is_finished() {
                self.is_in_frame = false;
            } else {
                let strategy = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, strategy).map_err(|error| invalid(&error))?;
            }
        }
    }
}

fn invalid(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Reads a layer.
pub(crate) struct LayerStream<R> {
    decoder: Decoder<R>,
    hash: Sha256,
    unpacked: u64,
    /// Maximum of `unpacked`.
    budget: u64,
    limits: Limits,
}

impl<R: Read> LayerStream<R> {
    /// Begins to read. `budget` is the number of uncompressed bytes that the limits still allow.
    ///
    /// # Errors
    /// Fails if the input does; the inner result is that of the check of its format.
    pub(crate) fn new(
        input: R,
        stated: Option<Format>,
        budget: u64,
        limits: &Limits,
    ) -> io::Result<Result<Self, FormatError>> {
        let mut beginning = Vec::with_capacity(4);
        let mut input = Counted { input, bytes: 0 };
        (&mut input).take(4).read_to_end(&mut beginning)?;
        let format = match Format::checked(&beginning, stated) {
            Ok(format) => format,
            Err(error) => return Ok(Err(error)),
        };
        let source = BufReader::with_capacity(BUFFER, io::Cursor::new(beginning).chain(input));
        let decoder = match format {
            Format::Tar => Decoder::Tar(source),
            Format::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(source))),
            Format::Zstd => {
                let mut decoder = FrameDecoder::new();
                decoder.set_max_window_size(limits.zstd_window);
                Decoder::Zstd(Box::new(Frames { decoder, source, is_in_frame: false }))
            }
        };
        Ok(Ok(Self { decoder, hash: Sha256::new(), unpacked: 0, budget, limits: limits.clone() }))
    }

    /// Returns the number of uncompressed bytes so far.
    pub(crate) fn unpacked(&self) -> u64 {
        self.unpacked
    }

    /// Returns the number of bytes that were read of the input so far.
    pub(crate) fn consumed(&self) -> u64 {
        self.decoder.source().bytes
    }

    /// Reads what follows the archive, and returns the digest and number of all uncompressed bytes.
    ///
    /// # Errors
    /// Fails like reading.
    pub(crate) fn finish(mut self) -> io::Result<([u8; 32], u64)> {
        let mut buffer = vec![0; 64 << 10];
        while self.read(&mut buffer)? > 0 {}
        Ok((self.hash.finalize().into(), self.unpacked))
    }

    fn check(&self) -> Result<(), Exceeded> {
        let Limits { unpacked_bytes, ratio, ratio_from, .. } = self.limits;
        if self.unpacked > self.budget {
            return Err(Exceeded { what: "uncompressed size of the layers in bytes", limit: unpacked_bytes });
        }
        if self.unpacked > ratio_from && self.unpacked / u64::from(ratio).max(1) > self.consumed() {
            return Err(Exceeded { what: "compression ratio of a layer", limit: ratio.into() });
        }
        Ok(())
    }
}

impl<R: Read> Read for LayerStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::Tar(source) => source.read(buffer)?,
            Decoder::Gzip(decoder) => decoder.read(buffer)?,
            Decoder::Zstd(frames) => frames.read(buffer)?,
        };
        self.hash.update(&buffer[..count]);
        self.unpacked += count as u64;
        self.check().map_err(io::Error::other)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn read(content: &[u8], budget: u64, limits: &Limits) -> io::Result<(Vec<u8>, [u8; 32])> {
        let mut stream = LayerStream::new(content, None, budget, limits)?.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        assert_eq!(stream.consumed(), content.len() as u64);
        Ok((bytes, stream.finish()?.0))
    }

    #[test]
    fn content_of_every_format_is_the_same_and_has_the_same_digest() {
        let content: Vec<u8> = (0..70_000_u32).flat_map(u32::to_le_bytes).collect();
        let zstd = ruzstd::encoding::compress_to_vec(&content[..], ruzstd::encoding::CompressionLevel::Fastest);
        let digest: [u8; 32] = Sha256::digest(&content).into();
        let (first, second) = content.split_at(99);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd].concat();
        for packed in [content.clone(), gzip(&content), [gzip(first), gzip(second)].concat(), zstd, skipped] {
            let (bytes, found) = read(&packed, u64::MAX, &Limits::default()).unwrap();
            assert!(bytes == content && found == digest, "{:?}", &packed[..4]);
        }
    }

    #[test]
    fn bombs_are_refused() {
        let bomb = gzip(&vec![0; 2 << 20]);
        let error = read(&bomb, 1 << 20, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("uncompressed size"), "{error}");
        let limits = Limits { ratio_from: 1 << 20, ..Limits::default() };
        let error = read(&bomb, u64::MAX, &limits).unwrap_err();
        assert!(error.to_string().contains("ratio"), "{error}");
        // A frame whose header states a window of 2 GiB.
        let error = read(&[0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0], u64::MAX, &limits).unwrap_err();
        assert!(error.to_string().contains("window"), "{error}");
    }

    #[test]
    fn damaged_content_is_an_error() {
        let content = gzip(&[7; 10_000]);
        assert!(read(&content[..content.len() - 9], u64::MAX, &Limits::default()).is_err());
        assert!(read(&[0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff], u64::MAX, &Limits::default()).is_err());
    }
}
