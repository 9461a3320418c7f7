//! A writable disk: a raw template that is never written, under copy-on-write layers of which only the top one is.
//!
//! One byte per block says where its newest content is, so a read costs the same under one layer as under sixty, and
//! runs of blocks from one place are one system call. The table is zero, and so takes no host memory, wherever the disk
//! was never written; a guest that writes everything costs 256 KiB per GiB of disk.
//!
//! Forking or snapshotting a disk is [`LayeredDisk::freeze_and_push`]: the top becomes read-only and a new empty file
//! goes above it, whatever the disk's size. Files that are frozen can be shared by any number of disks.

use super::{
    layer::{BLOCK, BLOCK_SIZE, BLOCKS_PER_BYTE, Layer, LayerError, State, check_disk_size},
    scatter,
};
use crate::{
    devices::virtio::chain::Buffers,
    process::{failure::kind_of, writer::WriteFailure},
};
use rustix::fs::{FallocateFlags, fallocate};
use sandboxvm_protocol::vmm::{MAX_DISK_LAYERS, RefusalKind};
use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
};

/// Layers on one disk. What needs more has to merge some first (see [`super::merging`]).
pub const LAYERS_MAX: usize = MAX_DISK_LAYERS;

const ZEROS: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// Why a layered disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LayeredDiskError {
    /// The template's size cannot be found out.
    #[error("cannot find out the size of the disk template: {0}")]
    Size(io::Error),
    /// The template cannot be one.
    #[error("the file of {size} bytes cannot be a disk template: {what}")]
    Template {
        /// Its size.
        size: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No layer to write to.
    #[error("a writable disk needs at least one layer")]
    NoLayer,
    /// Too many layers.
    #[error("a disk of {0} layers: {LAYERS_MAX} are the most there can be, merge some first")]
    TooManyLayers(usize),
    /// The top layer is frozen.
    #[error("the top layer of the disk is frozen: put a new one above it")]
    Frozen,
    /// The file for a new top layer has something in it.
    #[error("the file for a new disk layer is not empty")]
    NotBlank,
    /// The layers are not those that were merged.
    #[error("the disk's layers are others than were merged; merge them again")]
    Changed,
    /// Merging needs to read and write.
    #[error("cannot merge the disk's layers: {0}")]
    Merge(io::Error),
    /// A layer is not one.
    #[error("layer {index} (0 is the oldest): {source}")]
    Layer {
        /// Position from the bottom.
        index: usize,
        /// What is wrong with it.
        source: LayerError,
    },
}

impl LayeredDiskError {
    /// Returns the kind of refusal that a client receives.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Size(source) | Self::Merge(source) | Self::Layer { source: LayerError::Io { source, .. }, .. } => {
                kind_of(source)
            }
            Self::Changed => RefusalKind::Superseded,
            Self::NoLayer | Self::TooManyLayers(_) | Self::Frozen | Self::NotBlank => RefusalKind::BadRequest,
            Self::Template { .. } | Self::Layer { .. } => RefusalKind::BadSnapshot,
        }
    }
}

impl From<LayeredDiskError> for WriteFailure {
    fn from(error: LayeredDiskError) -> Self {
        Self { kind: error.kind(), message: error.to_string() }
    }
}

/// Where a block's content is, in one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u8);

impl Place {
    /// In the template. Zero, so that a fresh table needs no memory.
    pub(super) const TEMPLATE: Self = Self(0);
    /// Nowhere: it reads as zeros.
    pub(super) const ZERO: Self = Self(u8::MAX);

    /// An entry of the table.
    pub(super) fn new(entry: u8) -> Self {
        Self(entry)
    }

    /// In layer `index`, which is below [`LAYERS_MAX`].
    fn layer(index: usize) -> Self {
        Self(u8::try_from(index + 1).unwrap_or(u8::MAX))
    }

    pub(super) fn layer_index(self) -> Option<usize> {
        (self != Self::TEMPLATE && self != Self::ZERO).then(|| usize::from(self.0) - 1)
    }
}

const _: () = assert!(LAYERS_MAX < u8::MAX as usize, "a layer's place must differ from Place::ZERO");

/// A writable disk.
#[derive(Debug)]
pub struct LayeredDisk {
    template: File,
    size: u64,
    stack: Stack,
    /// How often the frozen layers became others.
    generation: u64,
}

/// Other layers that a disk of the same size can switch to.
#[derive(Debug)]
pub struct PreparedLayers {
    disk_size: u64,
    stack: Stack,
}

/// The layers, and the table of which block is where.
#[derive(Debug)]
struct Stack {
    /// Oldest first; never empty. Only the last is written to.
    layers: Vec<Layer>,
    /// A [`Place`] per block. Plain bytes, because only those are zeroed by the kernel, page by page, when touched.
    places: Vec<u8>,
}

impl LayeredDisk {
    /// A disk of `template`'s size with `layers` above it, oldest first. A last file in which nothing was ever written
    /// becomes a new layer.
    ///
    /// # Errors
    /// When the template is empty, above 1 TiB or not a multiple of 4096 bytes; when a layer is damaged or belongs to
    /// a disk of another size; when the last one is frozen.
    pub fn open(template: File, layers: Vec<File>) -> Result<Self, LayeredDiskError> {
        let size = template.metadata().map_err(LayeredDiskError::Size)?.size();
        check_disk_size(size).map_err(|what| LayeredDiskError::Template { size, what })?;
        let stack = Stack::open(size, layers)?;
        Ok(Self { template, size, stack, generation: 0 })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The layers' files, oldest first; the last is the one being written.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &File> {
        self.stack.layers.iter().map(Layer::file)
    }

    /// Freezes the top layer and makes `new_top`, an empty file, the one that is written from now on. Takes the same
    /// time for any disk. The frozen file then holds everything written so far (not made durable) and never changes.
    ///
    /// # Errors
    /// When there are too many layers, the file is not empty or cannot be written. The disk is unchanged then.
    pub fn freeze_and_push(&mut self, new_top: File) -> Result<(), LayeredDiskError> {
        self.stack.freeze_and_push(self.size, new_top)?;
        self.generation += 1;
        Ok(())
    }

    /// Opens `layers` over the same template, for [`LayeredDisk::switch_to`]. The disk stays as it is, and may be in use.
    ///
    /// # Errors
    /// As [`LayeredDisk::open`].
    pub fn prepare_layers(&self, layers: Vec<File>) -> Result<PreparedLayers, LayeredDiskError> {
        Ok(PreparedLayers { disk_size: self.size, stack: Stack::open(self.size, layers)? })
    }

    /// Replaces all layers, as if the disk had been opened again over the same template. For a rollback in place; the guest
    /// must not use the disk meanwhile.
    ///
    /// # Panics
    /// When the layers were prepared for a disk of another size.
    pub fn switch_to(&mut self, prepared: PreparedLayers) {
        assert_eq!(prepared.disk_size, self.size, "layers of another disk");
        self.stack = prepared.stack;
        self.generation += 1;
    }

    /// The layers that never change any more, oldest first.
    pub(super) fn frozen(&self) -> &[Layer] {
        let layers = &self.stack.layers;
        &layers[..layers.len() - 1]
    }

    /// Another number whenever the frozen layers are others.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Puts `merged`, which [`LayeredDisk::merge_frozen`] filled when the disk had this generation, in the place of all
    /// frozen layers. The top stays, and a guest that has the disk in use sees no difference. The file becomes a layer
    /// here and not before: it gets its header.
    ///
    /// # Errors
    /// When the layers are others by now, or the file is not as it was left. The disk is unchanged then.
    pub fn replace_frozen(&mut self, merged: File, generation: u64) -> Result<(), LayeredDiskError> {
        if generation != self.generation {
            return Err(LayeredDiskError::Changed);
        }
        self.stack.replace_frozen(self.size, merged)?;
        self.generation += 1;
        Ok(())
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// When the host cannot.
    pub fn flush(&mut self) -> io::Result<()> {
        // A layer frozen since the last flush may be unflushed too.
        for layer in self.stack.layers.iter_mut().filter(|layer| layer.unflushed) {
            layer.file().sync_data()?;
            layer.unflushed = false;
        }
        Ok(())
    }

    /// Fills `into` from byte `offset` on. The range lies in the disk.
    pub(super) fn read(&self, offset: u64, into: &mut Buffers<'_>) -> io::Result<()> {
        let mut at = offset;
        while !into.is_empty() {
            let (place, length) = self.stack.run(at, into.len());
            match place.layer_index().map(|index| &self.stack.layers[index]) {
                Some(layer) => scatter::read_exact_at(layer.file(), layer.position(at), into, length)?,
                None if place == Place::TEMPLATE => scatter::read_exact_at(&self.template, at, into, length)?,
                None => into.write_zeros(length),
            }
            at += length;
        }
        Ok(())
    }

    /// Writes all of `from` at byte `offset`. The range lies in the disk.
    pub(super) fn write(&mut self, offset: u64, from: &mut Buffers<'_>) -> io::Result<()> {
        self.overwrite(offset, from.len(), |file, position, length| scatter::write_all_at(file, position, from, length))
    }

    /// Lets the whole blocks in a range read as zeros, and returns their space to the host.
    pub(super) fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.stack.clear(whole_blocks(offset, length))
    }

    /// Lets a range read as zeros.
    pub(super) fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let whole = whole_blocks(offset, length);
        let zeros = |file: &File, position, length: u64| {
            // Less than a block on either side of the whole ones.
            let zeros = usize::try_from(length).ok().and_then(|length| ZEROS.get(..length));
            file.write_all_at(zeros.ok_or(io::ErrorKind::InvalidInput)?, position)
        };
        let end = offset + length;
        let (start_of_whole, end_of_whole) = if whole.is_empty() {
            let boundary = (offset.next_multiple_of(BLOCK)).min(end);
            (boundary, boundary)
        } else {
            (whole.start * BLOCK, whole.end * BLOCK)
        };
        self.overwrite(offset, start_of_whole - offset, zeros)?;
        self.stack.clear(whole)?;
        self.overwrite(end_of_whole, end - end_of_whole, zeros)
    }

    /// Calls `write(file, position, length)` for the parts of a range, from front to back, and records them. Blocks that are
    /// covered in part are completed with their old content first.
    fn overwrite(
        &mut self,
        offset: u64,
        length: u64,
        mut write: impl FnMut(&File, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let part_end = if at.is_multiple_of(BLOCK) && end - at >= BLOCK {
                end - end % BLOCK
            } else {
                end.min((at + 1).next_multiple_of(BLOCK))
            };
            if !(part_end - at).is_multiple_of(BLOCK) {
                self.complete(at..part_end)?;
            }
            let top = self.stack.top_mut();
            top.unflushed = true;
            write(top.file(), top.position(at), part_end - at)?;
            self.stack.mark(at / BLOCK..part_end.div_ceil(BLOCK), State::Data)?;
            at = part_end;
        }
        Ok(())
    }

    /// Copies to the top layer what `covered`, a part of one block, leaves of that block, unless it is there already.
    fn complete(&mut self, covered: Range<u64>) -> io::Result<()> {
        let start = covered.start - covered.start % BLOCK;
        let (place, _) = self.stack.run(start, BLOCK);
        if place == self.stack.top_place() {
            return Ok(());
        }
        let mut old = ZEROS;
        match place.layer_index().map(|index| &self.stack.layers[index]) {
            Some(layer) => layer.file().read_exact_at(&mut old, layer.position(start))?,
            None if place == Place::TEMPLATE => self.template.read_exact_at(&mut old, start)?,
            None => {}
        }
        let top = self.stack.top_mut();
        top.file().write_all_at(&old, top.position(start))
    }
}

impl Stack {
    fn open(disk_size: u64, files: Vec<File>) -> Result<Self, LayeredDiskError> {
        if files.len() > LAYERS_MAX {
            return Err(LayeredDiskError::TooManyLayers(files.len()));
        }
        let last = files.len().checked_sub(1).ok_or(LayeredDiskError::NoLayer)?;
        let mut layers = Vec::with_capacity(files.len());
        for (index, file) in files.into_iter().enumerate() {
            let refused = |source| LayeredDiskError::Layer { index, source };
            let layer = if index == last && Layer::is_blank(&file).map_err(refused)? {
                Layer::create(file, disk_size).map_err(refused)?
            } else {
                Layer::open(file, disk_size).map_err(refused)?
            };
            if index == last && layer.is_frozen() {
                return Err(LayeredDiskError::Frozen);
            }
            layers.push(layer);
        }
        let places = places(disk_size, &layers)?;
        Ok(Self { layers, places })
    }

    /// See [`LayeredDisk::replace_frozen`].
    fn replace_frozen(&mut self, disk_size: u64, file: File) -> Result<(), LayeredDiskError> {
        let refused = |source| LayeredDiskError::Layer { index: 0, source };
        let mut merged = Layer::filled(file, disk_size).map_err(refused)?;
        let places = places(disk_size, std::iter::once(&merged).chain(self.layers.last()))?;
        merged.freeze().map_err(refused)?;
        self.layers.drain(..self.layers.len() - 1);
        self.layers.insert(0, merged);
        self.places = places;
        Ok(())
    }

    fn freeze_and_push(&mut self, disk_size: u64, file: File) -> Result<(), LayeredDiskError> {
        let index = self.layers.len();
        if index >= LAYERS_MAX {
            return Err(LayeredDiskError::TooManyLayers(index + 1));
        }
        if !Layer::is_blank(&file).map_err(|source| LayeredDiskError::Layer { index, source })? {
            return Err(LayeredDiskError::NotBlank);
        }
        let new_top = Layer::create(file, disk_size).map_err(|source| LayeredDiskError::Layer { index, source })?;
        self.top_mut().freeze().map_err(|source| LayeredDiskError::Layer { index: index - 1, source })?;
        self.layers.push(new_top);
        Ok(())
    }

    fn top_mut(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("Stack::open refuses a disk without layers, and none is ever taken away")
    }

    fn top_place(&self) -> Place {
        Place::layer(self.layers.len() - 1)
    }

    /// Returns where the content from byte `offset` on is, and for how many bytes, up to `limit`, it continues there without a
    /// gap. All places keep a block at the same distance from its neighbours, so equal places are contiguous.
    fn run(&self, offset: u64, limit: u64) -> (Place, u64) {
        let first = self.index(offset / BLOCK);
        let last = self.index((offset + limit).div_ceil(BLOCK));
        let place = self.places[first];
        let blocks = self.places[first..last].iter().take_while(|&&entry| entry == place).count();
        let end = (first + blocks) as u64 * BLOCK;
        (Place(place), end.min(offset + limit) - offset)
    }

    /// A block's index in the table, or the table's length if that is less.
    fn index(&self, block: u64) -> usize {
        usize::try_from(block).unwrap_or(usize::MAX).min(self.places.len())
    }

    /// Lets `blocks` read as zeros.
    fn clear(&mut self, blocks: Range<u64>) -> io::Result<()> {
        let entries = self.index(blocks.start)..self.index(blocks.end);
        let top_place = self.top_place();
        let in_top = self.places[entries].contains(&top_place.0);
        self.mark(blocks.clone(), State::Zero)?;
        if in_top {
            let top = self.top_mut();
            let position = top.position(blocks.start * BLOCK);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A file system without holes keeps the space; that the blocks are zero is written down already.
            let _ = fallocate(top.file(), flags, position, (blocks.end - blocks.start) * BLOCK);
        }
        Ok(())
    }

    /// Records the state of `blocks` in the top layer: in its file first, then in the table.
    fn mark(&mut self, blocks: Range<u64>, state: State) -> io::Result<()> {
        let top_place = self.top_place();
        let place = match state {
            State::Data => top_place,
            State::Zero => Place::ZERO,
        };
        let mut states = [0; BLOCK_SIZE as usize];
        let mut at = self.index(blocks.start);
        let end = self.index(blocks.end);
        loop {
            // What is recorded already is not written again: most writes go to blocks written before.
            at += self.places[at..end].iter().take_while(|&&entry| entry == place.0).count();
            if at == end {
                return Ok(());
            }
            let first_group = at - at % GROUP;
            let chunk_end = end.min(first_group + states.len() * GROUP);
            let groups = (chunk_end - first_group).div_ceil(GROUP);
            for (group, byte) in states[..groups].iter_mut().enumerate() {
                *byte = 0;
                for slot in 0..GROUP {
                    let block = first_group + group * GROUP + slot;
                    let recorded = if (at..chunk_end).contains(&block) {
                        state as u8
                    } else {
                        self.places.get(block).map_or(0, |&entry| recorded_state(Place(entry), top_place))
                    };
                    *byte |= recorded << (2 * slot);
                }
            }
            self.top_mut().write_states(first_group as u64, &states[..groups])?;
            self.places[at..chunk_end].fill(place.0);
            at = chunk_end;
        }
    }
}

/// Where each block of a disk is under these layers, oldest first: the newest that has it wins.
pub(super) fn places<'a>(
    disk_size: u64,
    layers: impl IntoIterator<Item = &'a Layer>,
) -> Result<Vec<u8>, LayeredDiskError> {
    let blocks = usize::try_from(disk_size / BLOCK)
        .map_err(|_| LayeredDiskError::Template { size: disk_size, what: "it is too large for this host" })?;
    let mut places = vec![Place::TEMPLATE.0; blocks];
    for (index, layer) in layers.into_iter().enumerate() {
        let visited = layer.visit_states(|block, state| {
            let place = match state {
                State::Data => Place::layer(index),
                State::Zero => Place::ZERO,
            };
            // Layer::visit_states stays within the disk.
            if let Some(entry) = usize::try_from(block).ok().and_then(|block| places.get_mut(block)) {
                *entry = place.0;
            }
        });
        visited.map_err(|source| LayeredDiskError::Layer { index, source })?;
    }
    Ok(places)
}

/// Blocks whose states share a byte.
const GROUP: usize = BLOCKS_PER_BYTE as usize;

/// What the top layer's file has to say about a block in `place`. A zero that a lower layer recorded may be recorded
/// once more.
fn recorded_state(place: Place, top_place: Place) -> u8 {
    match place {
        _ if place == top_place => State::Data as u8,
        Place::ZERO => State::Zero as u8,
        _ => 0,
    }
}

/// The blocks that lie in a range whole.
fn whole_blocks(offset: u64, length: u64) -> Range<u64> {
    let start = offset.div_ceil(BLOCK);
    start..((offset + length) / BLOCK).max(start)
}
