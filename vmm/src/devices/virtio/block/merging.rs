//! Merging a disk's frozen layers into one, so that a chain of them does not grow without bound. Frozen layers never change,
//! so this runs beside the machine, in a process forked off the VMM; [`LayeredDisk::replace_frozen`] puts the result in
//! their place. Never writes to anything but the file it is given.

use super::{
    layer::{BLOCK, BLOCK_SIZE, BLOCKS_PER_BYTE, Layer, State},
    layered::{LayeredDisk, LayeredDiskError, Place, places},
};
use std::{fs::File, io, os::unix::fs::FileExt};

const BLOCK_LEN: usize = BLOCK_SIZE as usize;
const GROUP: usize = BLOCKS_PER_BYTE as usize;
/// Blocks looked at together: 1 MiB. A multiple of [`GROUP`].
const CHUNK: usize = 256;

impl LayeredDisk {
    /// Writes what all frozen layers say, the newest first, into `into`, an empty file, and makes it durable. It is not
    /// a layer before [`LayeredDisk::replace_frozen`] makes it one: a header is what tells that a disk uses it.
    ///
    /// What the template has, and no layer, stays the template's. Blocks full of zeros are recorded as such and take no
    /// space.
    ///
    /// # Errors
    /// When a layer is damaged or the host cannot read or write.
    pub fn merge_frozen(&self, into: File) -> Result<(), LayeredDiskError> {
        let refused = |source| LayeredDiskError::Layer { index: 0, source };
        if !Layer::is_blank(&into).map_err(refused)? {
            return Err(LayeredDiskError::NotBlank);
        }
        let mut merged = Layer::begin(into, self.size()).map_err(refused)?;
        let places = places(self.size(), self.frozen())?;
        let mut buffer = vec![0; CHUNK * BLOCK_LEN];
        for (number, chunk) in (0_u64..).zip(places.chunks(CHUNK)) {
            // Most of a disk was never written.
            if chunk.iter().any(|&entry| Place::new(entry) != Place::TEMPLATE) {
                merge_chunk(self.frozen(), number * CHUNK as u64, chunk, &mut merged, &mut buffer)
                    .map_err(LayeredDiskError::Merge)?;
            }
        }
        merged.file().sync_data().map_err(LayeredDiskError::Merge)
    }
}

/// Merges the blocks from `first` on, which are in `places`.
fn merge_chunk(layers: &[Layer], first: u64, places: &[u8], merged: &mut Layer, buffer: &mut [u8]) -> io::Result<()> {
    let mut states = [0_u8; CHUNK / GROUP];
    let mut record = |block: usize, state: State| states[block / GROUP] |= (state as u8) << (2 * (block % GROUP));
    let mut at = 0;
    while at < places.len() {
        let place = Place::new(places[at]);
        let count = places[at..].iter().take_while(|&&entry| Place::new(entry) == place).count();
        match place.layer_index() {
            Some(index) => {
                let offset = (first + at as u64) * BLOCK;
                let bytes = &mut buffer[..count * BLOCK_LEN];
                layers[index].file().read_exact_at(bytes, layers[index].position(offset))?;
                copy_blocks(bytes, offset, merged, |block, state| record(at + block, state))?;
            }
            None if place == Place::ZERO => (at..at + count).for_each(|block| record(block, State::Zero)),
            None => {}
        }
        at += count;
    }
    let groups = places.len().div_ceil(GROUP);
    merged.write_states(first, &states[..groups])
}

/// Writes those of `bytes`' blocks that are not zero, neighbours in one call, and records the state of each.
fn copy_blocks(bytes: &[u8], offset: u64, merged: &Layer, mut record: impl FnMut(usize, State)) -> io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
    let mut at = 0;
    while at < bytes.len() {
        let zero = is_zero(&bytes[at..at + BLOCK_LEN]);
        let blocks = bytes[at..].chunks(BLOCK_LEN).take_while(|block| is_zero(block) == zero).count();
        let end = at + blocks * BLOCK_LEN;
        if !zero {
            merged.file().write_all_at(&bytes[at..end], merged.position(offset + at as u64))?;
        }
        let state = if zero { State::Zero } else { State::Data };
        (at / BLOCK_LEN..end / BLOCK_LEN).for_each(|block| record(block, state));
        at = end;
    }
    Ok(())
}
