//! One copy-on-write layer of a disk, as a file: its format, and nothing about how layers stack.
//!
//! ```text
//! 0         header, 4 KiB: magic "SBVMLAYR", version u32, block size u32 (4096), disk size u64, offset of the block
//!           states u64, offset of the data u64, flags u32 (bit 0: frozen), CRC-32 u32 of the header with this field 0;
//!           the rest is zero; integers are little-endian
//! 4096      block states, 2 bits per block, the first block in the lowest bits: 0 absent (look in the layer below),
//!           1 data, 2 zero; padded with zeros to a multiple of 4 KiB
//! ...       data: block n at n * 4096 from here; a hole where the block is not in state 1
//! ```
//!
//! The file has its full length from the start and is sparse. Blocks are 4 KiB because that is what guests write: no
//! write of theirs needs the rest of a block copied up first.
//!
//! Data is written before the state that makes it count, so a VMM that dies at any moment leaves a whole layer. Against
//! a host that loses power only what was flushed is safe, like with any disk.
//!
//! A layer file is parsed as hostile: a wrong header, length or state is an error, and no size in it is believed beyond
//! what it must be for its disk.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
};

/// Bytes in a block.
pub const BLOCK_SIZE: u32 = 4096;

/// The same, for offsets.
pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;

/// Largest disk, in bytes (1 TiB): it bounds the memory that a layer's states take.
pub const DISK_SIZE_MAX: u64 = 1 << 40;

const MAGIC: [u8; 8] = *b"SBVMLAYR";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 4096;
const STATES_OFFSET: u64 = HEADER_SIZE as u64;
const FLAG_FROZEN: u32 = 1;
/// Where in the header its checksum is.
const CRC: Range<usize> = 44..48;

/// Blocks whose states share a byte.
pub(super) const BLOCKS_PER_BYTE: u32 = 4;

/// Why a file cannot be a layer of a disk.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The host failed.
    #[error("cannot {what} a disk layer: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A device, pipe or directory.
    #[error("a disk layer must be a regular file")]
    NotAFile,
    /// Not a layer at all.
    #[error("the file is not a disk layer: its first 8 bytes are not \"SBVMLAYR\"")]
    Magic,
    /// Written by a newer VMM.
    #[error("the disk layer has format version {0}; this build reads version {VERSION}")]
    Version(u32),
    /// A flipped bit in the header.
    #[error("the disk layer's header is damaged: wrong checksum")]
    Checksum,
    /// A header that checks, and yet cannot be.
    #[error("the disk layer's header is not possible: {0}")]
    Header(&'static str),
    /// A layer of another disk.
    #[error("the layer belongs to a disk of {layer} bytes, the disk has {disk}")]
    DiskSize {
        /// In the header.
        layer: u64,
        /// Of the template.
        disk: u64,
    },
    /// The file was cut, or grew.
    #[error("the disk layer has {actual} bytes and should have {expected}: is it truncated?")]
    Length {
        /// Bytes there are.
        actual: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// A state that means nothing, or one of a block beyond the disk.
    #[error("the disk layer's state of block {block} is not possible")]
    State {
        /// The block.
        block: u64,
    },
}

impl LayerError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// What a layer says about a block it does not leave to the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Its content is in the data area.
    Data = 1,
    /// It reads as zeros.
    Zero = 2,
}

/// A layer.
#[derive(Debug)]
pub(super) struct Layer {
    file: File,
    disk_size: u64,
    frozen: bool,
    /// Written to since the last flush.
    pub(super) unflushed: bool,
}

/// A disk size that layers can have.
pub(super) fn check_disk_size(size: u64) -> Result<(), &'static str> {
    match size {
        0 => Err("the disk has no bytes"),
        _ if !size.is_multiple_of(BLOCK) => Err("the disk is not a multiple of 4096 bytes"),
        _ if size > DISK_SIZE_MAX => Err("the disk is larger than 1 TiB"),
        _ => Ok(()),
    }
}

impl Layer {
    /// Makes a layer of `file`, in which nothing was ever written, for a disk of `disk_size` bytes
    /// ([`check_disk_size`]).
    pub(super) fn create(file: File, disk_size: u64) -> Result<Self, LayerError> {
        // The header comes last: until it is there, the file counts as one in which nothing was written.
        let layer = Self::begin(file, disk_size)?;
        layer.write_header()?;
        Ok(layer)
    }

    /// Reads `file` as a layer of a disk of `disk_size` bytes.
    pub(super) fn open(file: File, disk_size: u64) -> Result<Self, LayerError> {
        check_disk_size(disk_size).map_err(LayerError::Header)?;
        let metadata = file.metadata().map_err(LayerError::io("examine"))?;
        if !metadata.is_file() {
            return Err(LayerError::NotAFile);
        }
        let mut header = [0; HEADER_SIZE];
        if metadata.size() >= STATES_OFFSET {
            file.read_exact_at(&mut header, 0).map_err(LayerError::io("read the header of"))?;
        }
        let frozen = parse_header(&header, disk_size)?;
        let layer = Self { file, disk_size, frozen, unflushed: false };
        if metadata.size() != layer.length() {
            return Err(LayerError::Length { actual: metadata.size(), expected: layer.length() });
        }
        Ok(layer)
    }

    /// Gives `file`, in which nothing was ever written, the length of a layer, but no header: it is to be filled with
    /// [`Layer::write_states`] and data, and becomes a layer by [`Layer::freeze`].
    pub(super) fn begin(file: File, disk_size: u64) -> Result<Self, LayerError> {
        check_disk_size(disk_size).map_err(LayerError::Header)?;
        let layer = Self { file, disk_size, frozen: false, unflushed: true };
        layer.file.set_len(layer.length()).map_err(LayerError::io("size"))?;
        Ok(layer)
    }

    /// Takes up a file that was filled after [`Layer::begin`], in another process perhaps; it still has no header.
    pub(super) fn filled(file: File, disk_size: u64) -> Result<Self, LayerError> {
        check_disk_size(disk_size).map_err(LayerError::Header)?;
        let metadata = file.metadata().map_err(LayerError::io("examine"))?;
        if !metadata.is_file() {
            return Err(LayerError::NotAFile);
        }
        let layer = Self { file, disk_size, frozen: false, unflushed: true };
        if metadata.size() != layer.length() {
            return Err(LayerError::Length { actual: metadata.size(), expected: layer.length() });
        }
        Ok(layer)
    }

    /// Whether nothing was ever written in `file`: it may become a layer.
    pub(super) fn is_blank(file: &File) -> Result<bool, LayerError> {
        let metadata = file.metadata().map_err(LayerError::io("examine"))?;
        if !metadata.is_file() {
            return Err(LayerError::NotAFile);
        }
        Ok(metadata.size() == 0 || next_data(file, 0)?.is_none())
    }

    fn blocks(&self) -> u64 {
        self.disk_size / BLOCK
    }

    fn length(&self) -> u64 {
        data_offset(self.disk_size) + self.disk_size
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Where in the file byte `offset` of the disk is.
    pub(super) fn position(&self, offset: u64) -> u64 {
        data_offset(self.disk_size) + offset
    }

    /// Marks the file as never to be written again, so that it can be shared.
    pub(super) fn freeze(&mut self) -> Result<(), LayerError> {
        if self.frozen {
            return Ok(());
        }
        self.frozen = true;
        let result = self.write_header();
        self.frozen = result.is_ok();
        self.unflushed = true;
        result
    }

    fn write_header(&self) -> Result<(), LayerError> {
        let mut header = [0; HEADER_SIZE];
        let fields: [&[u8]; 7] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &BLOCK_SIZE.to_le_bytes(),
            &self.disk_size.to_le_bytes(),
            &STATES_OFFSET.to_le_bytes(),
            &data_offset(self.disk_size).to_le_bytes(),
            &(if self.frozen { FLAG_FROZEN } else { 0 }).to_le_bytes(),
        ];
        let fields = fields.concat();
        header[..fields.len()].copy_from_slice(&fields);
        let crc = crc32fast::hash(&header);
        header[CRC].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&header, 0).map_err(LayerError::io("write the header of"))
    }

    /// Writes the states of `blocks.len() / 4` groups of four blocks, from the group of block `first` on.
    pub(super) fn write_states(&mut self, first: u64, states: &[u8]) -> io::Result<()> {
        self.unflushed = true;
        self.file.write_all_at(states, STATES_OFFSET + first / u64::from(BLOCKS_PER_BYTE))
    }

    /// Calls `visit` for every block that is not absent, in ascending order.
    pub(super) fn visit_states(&self, mut visit: impl FnMut(u64, State)) -> Result<(), LayerError> {
        let end = data_offset(self.disk_size);
        // Small: it is read while a machine is being restored, and most of a disk's states are holes.
        let mut chunk = vec![0; 8 * 1024];
        let mut position = STATES_OFFSET;
        // States are holes for most of a large disk: those are not read.
        while let Some(start) = next_data(&self.file, position)?.filter(|&start| start < end) {
            position = start.max(position);
            let length = usize::try_from(end - position).map_or(chunk.len(), |left| left.min(chunk.len()));
            let states = &mut chunk[..length];
            self.file.read_exact_at(states, position).map_err(LayerError::io("read the block states of"))?;
            let first = (position - STATES_OFFSET) * u64::from(BLOCKS_PER_BYTE);
            self.visit_chunk(first, states, &mut visit)?;
            position += length as u64;
        }
        Ok(())
    }

    fn visit_chunk(&self, first: u64, states: &[u8], visit: &mut impl FnMut(u64, State)) -> Result<(), LayerError> {
        // Most lines are empty; looking at them whole is what makes opening a long chain of layers cheap.
        const LINE: usize = 64;
        for (line_index, line) in (0..).zip(states.chunks(LINE)) {
            if line.iter().fold(0, |any, byte| any | byte) == 0 {
                continue;
            }
            for (index, &byte) in (line_index * LINE as u64..).zip(line) {
                self.visit_byte(first + index * u64::from(BLOCKS_PER_BYTE), byte, visit)?;
            }
        }
        Ok(())
    }

    /// Visits the states of the blocks from `first` on that share a byte.
    fn visit_byte(&self, first: u64, byte: u8, visit: &mut impl FnMut(u64, State)) -> Result<(), LayerError> {
        for slot in 0..BLOCKS_PER_BYTE {
            let block = first + u64::from(slot);
            let state = match byte >> (2 * slot) & 0b11 {
                0 => continue,
                1 => State::Data,
                2 => State::Zero,
                _ => return Err(LayerError::State { block }),
            };
            if block >= self.blocks() {
                return Err(LayerError::State { block });
            }
            visit(block, state);
        }
        Ok(())
    }
}

fn states_size(disk_size: u64) -> u64 {
    (disk_size / BLOCK).div_ceil(BLOCKS_PER_BYTE.into()).next_multiple_of(HEADER_SIZE as u64)
}

fn data_offset(disk_size: u64) -> u64 {
    STATES_OFFSET + states_size(disk_size)
}

/// Checks a header; returns whether the layer is frozen.
fn parse_header(header: &[u8; HEADER_SIZE], disk_size: u64) -> Result<bool, LayerError> {
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if header[..MAGIC.len()] != MAGIC {
        return Err(LayerError::Magic);
    }
    if u32_at(8) != VERSION {
        return Err(LayerError::Version(u32_at(8)));
    }
    let mut unsigned = *header;
    unsigned[CRC].fill(0);
    if crc32fast::hash(&unsigned) != u32_at(CRC.start) {
        return Err(LayerError::Checksum);
    }
    if u32_at(12) != BLOCK_SIZE {
        return Err(LayerError::Header("its block size is not 4096"));
    }
    if u64_at(16) != disk_size {
        return Err(LayerError::DiskSize { layer: u64_at(16), disk: disk_size });
    }
    if u64_at(24) != STATES_OFFSET || u64_at(32) != data_offset(disk_size) {
        return Err(LayerError::Header("its parts are not where they belong"));
    }
    if u32_at(40) & !FLAG_FROZEN != 0 || header[CRC.end..].iter().any(|&byte| byte != 0) {
        return Err(LayerError::Header("it uses fields that this version does not have"));
    }
    Ok(u32_at(40) & FLAG_FROZEN != 0)
}

/// Where, at or after `position`, the next bytes are that were ever written.
fn next_data(file: &File, position: u64) -> Result<Option<u64>, LayerError> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(LayerError::Io { what: "find the data of", source: error.into() }),
    }
}
