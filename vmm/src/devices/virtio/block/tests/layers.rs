//! Layered disks against a plain byte array, and layer files with something wrong in them.

use super::super::{
    layer::{BLOCK, LayerError},
    layered::{LAYERS_MAX, LayeredDisk, LayeredDiskError},
};
use crate::{
    devices::virtio::{chain::Buffers, mock_driver::guest_memory},
    memory::GuestMemory,
};
use proptest::prelude::*;
use std::{fs::File, os::unix::fs::FileExt, sync::Arc};
use vm_memory::{Bytes, GuestAddress};

const SECTOR: u64 = 512;
/// Not a multiple of four blocks: the last byte of states is shared with blocks that are not there.
const BLOCKS: u64 = 22;
const SIZE: usize = (BLOCKS * BLOCK) as usize;
const SECTORS: u64 = BLOCKS * BLOCK / SECTOR;

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| seed ^ (i % 253) as u8 ^ (i / 512) as u8).collect()
}

fn template() -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(0x5a, SIZE), 0).unwrap();
    file
}

fn blank() -> File {
    tempfile::tempfile().unwrap()
}

fn clones(files: &[Arc<File>]) -> Vec<File> {
    files.iter().map(|file| file.try_clone().unwrap()).collect()
}

/// Guest memory in uneven pieces, the length of which is `length` in all.
fn scattered(memory: &GuestMemory, length: usize) -> (Buffers<'_>, Vec<(GuestAddress, usize)>) {
    let mut buffers = Buffers::default();
    let mut pieces = Vec::new();
    let (mut left, mut address) = (length, 0x1000);
    for piece in [1, 511, 1024, 7, 4096, 3000].into_iter().cycle() {
        if left == 0 {
            break;
        }
        let piece = left.min(piece);
        buffers.push(memory, GuestAddress(address), u32::try_from(piece).unwrap()).unwrap();
        pieces.push((GuestAddress(address), piece));
        address += piece as u64 + 13;
        left -= piece;
    }
    (buffers, pieces)
}

fn read(disk: &LayeredDisk, offset: u64, length: usize) -> Vec<u8> {
    let memory = guest_memory();
    let (mut buffers, pieces) = scattered(&memory, length);
    disk.read(offset, &mut buffers).unwrap();
    assert!(buffers.is_empty());
    let mut bytes = Vec::new();
    for (address, length) in pieces {
        let mut piece = vec![0; length];
        memory.read_slice(&mut piece, address).unwrap();
        bytes.extend(piece);
    }
    bytes
}

fn write(disk: &mut LayeredDisk, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let memory = guest_memory();
    let (mut buffers, pieces) = scattered(&memory, bytes.len());
    let mut rest = bytes;
    for (address, length) in pieces {
        let (piece, after) = rest.split_at(length);
        memory.write_slice(piece, address).unwrap();
        rest = after;
    }
    disk.write(offset, &mut buffers)
}

/// A disk, what it should hold, and what it held at each fork.
#[derive(Debug)]
struct Subject {
    disk: LayeredDisk,
    files: Vec<Arc<File>>,
    model: Vec<u8>,
    /// The layers that were frozen, and what they made.
    forks: Vec<(Vec<Arc<File>>, Vec<u8>)>,
    /// Merged, not used yet: the file, the disk's generation then, and what the layers made.
    merged: Option<(Arc<File>, u64, Vec<u8>)>,
}

impl Subject {
    fn new() -> Self {
        let files = vec![Arc::new(blank())];
        let disk = LayeredDisk::open(template(), clones(&files)).unwrap();
        Self { disk, files, model: pattern(0x5a, SIZE), forks: Vec::new(), merged: None }
    }

    fn apply(&mut self, step: &Step) {
        let range = |first: u64, count: u64| {
            let (start, end) = (first * SECTOR, (first + count).min(SECTORS) * SECTOR);
            (start, end - start, start as usize..end as usize)
        };
        match *step {
            Step::Write { first, count, seed } => {
                let (offset, length, at) = range(first, count);
                let bytes = pattern(seed, length as usize);
                write(&mut self.disk, offset, &bytes).unwrap();
                self.model[at].copy_from_slice(&bytes);
            }
            Step::WriteZeroes { first, count } => {
                let (offset, length, at) = range(first, count);
                self.disk.write_zeroes(offset, length).unwrap();
                self.model[at].fill(0);
            }
            Step::Discard { first, count } => {
                let (offset, length, at) = range(first, count);
                self.disk.discard(offset, length).unwrap();
                let block = BLOCK as usize;
                let start = at.start.next_multiple_of(block);
                let end = at.end / block * block;
                if start < end {
                    self.model[start..end].fill(0);
                }
            }
            Step::Fork => {
                if self.files.len() < LAYERS_MAX {
                    let top = blank();
                    self.disk.freeze_and_push(top.try_clone().unwrap()).unwrap();
                    self.forks.push((self.files.clone(), self.model.clone()));
                    self.files.push(Arc::new(top));
                }
            }
            Step::Merge => {
                let file = blank();
                self.disk.merge_frozen(file.try_clone().unwrap()).unwrap();
                let held = self.forks.last().map_or_else(|| pattern(0x5a, SIZE), |(_, held)| held.clone());
                self.merged = Some((Arc::new(file), self.disk.generation(), held));
            }
            Step::UseMerged => self.use_merged(),
            Step::Reopen => {
                self.disk = LayeredDisk::open(template(), clones(&self.files)).unwrap();
                self.merged = None;
            }
            Step::Flush => self.disk.flush().unwrap(),
        }
        let (first, count) = step.range();
        let around = first.saturating_sub(9)..(first + count + 9).min(SECTORS);
        let (start, end) = (around.start * SECTOR, around.end * SECTOR);
        let bytes = read(&self.disk, start, (end - start) as usize);
        assert!(bytes == self.model[start as usize..end as usize], "after {step:?}");
    }

    fn use_merged(&mut self) {
        let Some((file, generation, held)) = self.merged.take() else { return };
        let result = self.disk.replace_frozen(file.try_clone().unwrap(), generation);
        if generation != self.disk.generation() - u64::from(result.is_ok()) {
            assert!(matches!(result, Err(LayeredDiskError::Changed)), "{result:?}");
            return;
        }
        result.unwrap();
        let top = self.files.pop().unwrap();
        self.files = vec![Arc::clone(&file), top];
        assert_eq!(self.disk.layers().len(), 2);
        self.forks.push((vec![file], held));
    }

    /// Every fork ever made still opens, over its frozen layers alone, as what it was then.
    fn check_forks(&self) {
        for (files, held) in &self.forks {
            let files = clones(files).into_iter().chain([blank()]).collect();
            let disk = LayeredDisk::open(template(), files).unwrap();
            assert!(read(&disk, 0, SIZE) == *held);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { first: u64, count: u64, seed: u8 },
    WriteZeroes { first: u64, count: u64 },
    Discard { first: u64, count: u64 },
    Fork,
    Merge,
    UseMerged,
    Reopen,
    Flush,
}

impl Step {
    fn range(&self) -> (u64, u64) {
        match *self {
            Self::Write { first, count, .. } | Self::WriteZeroes { first, count } | Self::Discard { first, count } => {
                (first, count)
            }
            _ => (0, SECTORS),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    // As many small unaligned ranges as long ones.
    let range = (0..SECTORS).prop_flat_map(|first| {
        let whole = prop_oneof![1..=20_u64, 1..=SECTORS, Just(8_u64)];
        let aligned = prop_oneof![Just(first), Just(first / 8 * 8)];
        (aligned, whole)
    });
    prop_oneof![
        6 => (range.clone(), 1..u8::MAX).prop_map(|((first, count), seed)| Step::Write { first, count, seed }),
        2 => range.clone().prop_map(|(first, count)| Step::WriteZeroes { first, count }),
        2 => range.prop_map(|(first, count)| Step::Discard { first, count }),
        3 => Just(Step::Fork),
        1 => Just(Step::Merge),
        2 => Just(Step::UseMerged),
        1 => Just(Step::Reopen),
        1 => Just(Step::Flush),
    ]
}

/// Enough to find a planted mistake in marking, completing or masking within one run.
const CASES: u32 = 64;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_layered_disk_is_a_byte_array(steps in prop::collection::vec(step(), 1..60)) {
        let mut subject = Subject::new();
        for step in &steps {
            subject.apply(step);
        }
        assert!(read(&subject.disk, 0, SIZE) == subject.model);
        subject.apply(&Step::Reopen);
        subject.check_forks();
    }

    #[test]
    fn any_flipped_bit_in_the_header_is_noticed(bit in 0_usize..4096 * 8) {
        let file = written_layer();
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit as u64 / 8).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit as u64 / 8).unwrap();
        assert!(matches!(open_one(&file), Err(LayeredDiskError::Layer { index: 0, .. })));
    }

    #[test]
    fn any_other_length_is_noticed(length in 1_u64..2 * SIZE as u64) {
        let file = written_layer();
        prop_assume!(length != file.metadata().unwrap().len());
        file.set_len(length).unwrap();
        assert!(matches!(open_one(&file), Err(LayeredDiskError::Layer { index: 0, .. })));
    }

    #[test]
    fn any_states_make_a_disk_that_reads_or_none(states in prop::collection::vec(any::<u8>(), 1..8)) {
        let file = written_layer();
        file.write_all_at(&states, 4096).unwrap();
        match open_one(&file) {
            Ok(disk) => assert_eq!(read(&disk, 0, SIZE).len(), SIZE),
            Err(error) => {
                let refused = matches!(error, LayeredDiskError::Layer { index: 0, source: LayerError::State { .. } });
                assert!(refused, "{error}");
            }
        }
    }

    #[test]
    fn any_file_is_refused_or_a_layer(bytes in prop::collection::vec(any::<u8>(), 1..9000)) {
        let file = blank();
        file.write_all_at(&bytes, 0).unwrap();
        assert!(open_one(&file).is_err());
    }
}

/// A layer with its first block written.
fn written_layer() -> File {
    let file = blank();
    let mut disk = LayeredDisk::open(template(), vec![file.try_clone().unwrap()]).unwrap();
    write(&mut disk, 0, &[1; 4096]).unwrap();
    file
}

fn open_one(file: &File) -> Result<LayeredDisk, LayeredDiskError> {
    LayeredDisk::open(template(), vec![file.try_clone().unwrap()])
}

fn layer_error(result: Result<LayeredDisk, LayeredDiskError>) -> LayerError {
    match result {
        Err(LayeredDiskError::Layer { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn states_that_mean_nothing_are_refused() {
    let file = written_layer();
    file.write_all_at(&[0b1100], 4096).unwrap();
    assert!(matches!(layer_error(open_one(&file)), LayerError::State { block: 1 }));
    // Block 22 of 22, in the byte of blocks 20 to 23.
    file.write_all_at(&[0, 0, 0, 0, 0, 0b1_0000], 4096).unwrap();
    assert!(matches!(layer_error(open_one(&file)), LayerError::State { block: 22 }));
    // The last byte before the data area.
    file.write_all_at(&[0], 4096 + 5).unwrap();
    file.write_all_at(&[1], 8191).unwrap();
    assert!(matches!(layer_error(open_one(&file)), LayerError::State { block: 16380 }));
}

#[test]
fn a_layer_of_another_disk_is_refused() {
    let other = blank();
    other.set_len(SIZE as u64 + BLOCK).unwrap();
    let result = LayeredDisk::open(other, vec![written_layer()]);
    assert!(matches!(layer_error(result), LayerError::DiskSize { .. }));
}

#[test]
fn a_newer_format_says_so() {
    let file = written_layer();
    file.write_all_at(&2_u32.to_le_bytes(), 8).unwrap();
    assert!(matches!(layer_error(open_one(&file)), LayerError::Version(2)));
}

#[test]
fn templates_that_cannot_be_disks_are_refused() {
    for size in [0, 512, 4095, (1 << 40) + BLOCK] {
        let file = blank();
        file.set_len(size).unwrap();
        let refused = LayeredDisk::open(file, vec![blank()]);
        assert!(matches!(refused, Err(LayeredDiskError::Template { size: named, .. }) if named == size));
    }
}

#[test]
fn the_largest_disk_opens_at_once_and_works_at_its_end() {
    let template = blank();
    template.set_len(1 << 40).unwrap();
    let layer = blank();
    let mut disk = LayeredDisk::open(template.try_clone().unwrap(), vec![layer.try_clone().unwrap()]).unwrap();
    write(&mut disk, (1 << 40) - 512, &[7; 512]).unwrap();
    disk.freeze_and_push(blank()).unwrap();
    let disk = LayeredDisk::open(template, vec![layer, blank()]).unwrap();
    assert_eq!(read(&disk, (1 << 40) - 1024, 1024), [[0; 512], [7; 512]].concat());
}

#[test]
fn a_frozen_layer_is_not_written_again() {
    let mut subject = Subject::new();
    subject.apply(&Step::Fork);
    let frozen = clones(&subject.files[..1]);
    assert!(matches!(LayeredDisk::open(template(), frozen), Err(LayeredDiskError::Frozen)));
}

#[test]
fn a_new_top_must_be_blank_and_not_one_too_many() {
    let mut subject = Subject::new();
    assert!(matches!(subject.disk.freeze_and_push(written_layer()), Err(LayeredDiskError::NotBlank)));
    for seed in 2..=64 {
        subject.apply(&Step::Write { first: u64::from(seed), count: 3, seed });
        subject.apply(&Step::Fork);
    }
    assert_eq!(subject.disk.layers().len(), LAYERS_MAX);
    assert!(matches!(subject.disk.freeze_and_push(blank()), Err(LayeredDiskError::TooManyLayers(65))));
    // Refused, and still whole.
    subject.apply(&Step::Write { first: 1, count: 100, seed: 1 });
    subject.apply(&Step::Reopen);
    subject.check_forks();
    let too_many = clones(&subject.files).into_iter().chain([blank()]).collect();
    assert!(matches!(LayeredDisk::open(template(), too_many), Err(LayeredDiskError::TooManyLayers(65))));
    assert!(matches!(LayeredDisk::open(template(), Vec::new()), Err(LayeredDiskError::NoLayer)));
}

#[test]
fn a_blank_file_below_the_top_is_not_taken_for_a_layer() {
    let result = LayeredDisk::open(template(), vec![blank(), blank()]);
    assert!(matches!(layer_error(result), LayerError::Magic));
}

#[test]
fn a_layer_whose_making_was_interrupted_is_made_again() {
    let file = blank();
    file.set_len(12345).unwrap();
    let disk = LayeredDisk::open(template(), vec![file]).unwrap();
    assert_eq!(read(&disk, 0, SIZE), pattern(0x5a, SIZE));
}

#[test]
fn switching_layers_rolls_back_in_place() {
    let mut subject = Subject::new();
    subject.apply(&Step::Write { first: 0, count: 20, seed: 1 });
    let held = subject.model.clone();
    subject.apply(&Step::Fork);
    subject.apply(&Step::Discard { first: 0, count: 64 });
    let prepared = subject.disk.prepare_layers(vec![subject.files[0].try_clone().unwrap(), blank()]).unwrap();
    subject.disk.switch_to(prepared);
    assert!(read(&subject.disk, 0, SIZE) == held);
    // A switch that fails changes nothing.
    assert!(subject.disk.prepare_layers(vec![subject.files[0].try_clone().unwrap()]).is_err());
    assert!(read(&subject.disk, 0, SIZE) == held);
}

#[test]
fn a_write_that_fails_leaves_the_disk_as_it_was() {
    let mut subject = Subject::new();
    subject.apply(&Step::Write { first: 0, count: 13, seed: 9 });
    subject.apply(&Step::WriteZeroes { first: 32, count: 16 });
    // The same file, open for reading only: every write to it fails.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&subject.files[0]));
    subject.disk = LayeredDisk::open(template(), vec![File::open(path).unwrap()]).unwrap();
    assert!(write(&mut subject.disk, 512, &[3; 9000]).is_err());
    assert!(subject.disk.discard(0, 8192).is_err());
    assert!(subject.disk.write_zeroes(100 * 512, 512).is_err());
    assert!(subject.disk.freeze_and_push(blank()).is_err());
    assert!(read(&subject.disk, 0, SIZE) == subject.model);
}

#[test]
fn many_layers_become_one_that_holds_the_newest_of_each_block() {
    let mut subject = Subject::new();
    for seed in 1..LAYERS_MAX as u8 {
        subject.apply(&Step::Write { first: u64::from(seed) * 5 % SECTORS, count: 9, seed });
        // Hides what a lower layer, or the template, has.
        subject.apply(&Step::Discard { first: u64::from(seed) * 11 / 8 * 8 % SECTORS, count: 16 });
        subject.apply(&Step::Fork);
    }
    subject.apply(&Step::Write { first: 3, count: 2, seed: 99 });
    subject.apply(&Step::Merge);
    // The machine writes on while layers are merged.
    subject.apply(&Step::Write { first: 4, count: 30, seed: 98 });
    subject.apply(&Step::Discard { first: 64, count: 24 });
    subject.apply(&Step::UseMerged);
    assert!(read(&subject.disk, 0, SIZE) == subject.model);
    subject.apply(&Step::Write { first: 80, count: 30, seed: 97 });
    subject.apply(&Step::Reopen);
    assert_eq!(subject.disk.layers().len(), 2);
    assert!(read(&subject.disk, 0, SIZE) == subject.model);
    subject.check_forks();
}

#[test]
fn what_is_merged_is_no_layer_before_it_is_used_and_is_not_used_over_others() {
    let mut subject = Subject::new();
    subject.apply(&Step::Write { first: 0, count: 40, seed: 1 });
    subject.apply(&Step::Fork);
    let (early, late) = (blank(), blank());
    assert!(matches!(subject.disk.merge_frozen(written_layer()), Err(LayeredDiskError::NotBlank)));
    subject.disk.merge_frozen(early.try_clone().unwrap()).unwrap();
    let generation = subject.disk.generation();
    assert!(matches!(layer_error(open_one(&early)), LayerError::Magic));
    // A disk that continues with others keeps them, and the file does not become a layer.
    subject.apply(&Step::Fork);
    let refused = subject.disk.replace_frozen(early.try_clone().unwrap(), generation);
    assert!(matches!(refused, Err(LayeredDiskError::Changed)));
    assert!(matches!(layer_error(open_one(&early)), LayerError::Magic));
    // So does one whose merged layer is damaged.
    subject.disk.merge_frozen(late.try_clone().unwrap()).unwrap();
    late.write_all_at(&[0b1100], 4096).unwrap();
    let generation = subject.disk.generation();
    let refused = subject.disk.replace_frozen(late.try_clone().unwrap(), generation);
    assert!(matches!(refused, Err(LayeredDiskError::Layer { source: LayerError::State { block: 1 }, .. })));
    assert!(matches!(layer_error(open_one(&late)), LayerError::Magic));
    late.set_len(4096).unwrap();
    let refused = subject.disk.replace_frozen(late, generation);
    assert!(matches!(refused, Err(LayeredDiskError::Layer { source: LayerError::Length { .. }, .. })));
    assert_eq!(subject.disk.layers().len(), 3);
    subject.apply(&Step::Write { first: 1, count: 100, seed: 1 });
    subject.apply(&Step::Reopen);
    subject.check_forks();
}

#[test]
fn merging_takes_no_space_for_zeros_and_what_was_hidden() {
    use std::os::unix::fs::MetadataExt;
    let size = 8 << 20;
    let template = blank();
    template.set_len(size).unwrap();
    let mut disk = LayeredDisk::open(template, vec![blank()]).unwrap();
    for byte in [1, 2, 0, 3] {
        // The first piece is overwritten by each and discarded in the end; of the others one is zeros.
        write(&mut disk, 0, &[byte; 256 * 1024]).unwrap();
        write(&mut disk, (4 << 20) + u64::from(byte) * 65536, &[byte; 65536]).unwrap();
        disk.freeze_and_push(blank()).unwrap();
    }
    disk.discard(0, 1 << 20).unwrap();
    disk.freeze_and_push(blank()).unwrap();
    let merged = blank();
    disk.merge_frozen(merged.try_clone().unwrap()).unwrap();
    // Three pieces of 64 KiB, and states.
    let space = merged.metadata().unwrap().blocks() * 512;
    assert!((3 * 65536..4 * 65536).contains(&space), "{space}");
    let generation = disk.generation();
    disk.replace_frozen(merged, generation).unwrap();
    assert_eq!(read(&disk, (4 << 20) + 65536 - 512, 1024), [[0; 512], [1; 512]].concat());
    assert_eq!(read(&disk, 0, 65536), vec![0; 65536]);
}

#[test]
fn discarded_blocks_give_their_space_back() {
    use std::os::unix::fs::MetadataExt;
    let size = 8 << 20;
    let template = blank();
    template.set_len(size).unwrap();
    let layer = blank();
    let mut disk = LayeredDisk::open(template, vec![layer.try_clone().unwrap()]).unwrap();
    let piece = [1; 256 * 1024];
    for offset in (0..size).step_by(piece.len()) {
        write(&mut disk, offset, &piece).unwrap();
    }
    disk.flush().unwrap();
    let full = layer.metadata().unwrap().blocks();
    assert!(full * 512 >= size);
    disk.discard(0, size).unwrap();
    disk.flush().unwrap();
    assert!(layer.metadata().unwrap().blocks() < full / 16, "{}", layer.metadata().unwrap().blocks());
}
