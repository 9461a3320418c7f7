//! Untrusted disk layers are opened, read, written and frozen. A layer that is refused must be
//! refused before anything is read from it, and one that is accepted must make a disk that works.

use crate::input::{Input, file};
use sandboxvm_vmm::devices::virtio::block::{BlockDevice, LayeredDisk};

/// Size of the disk. It has 16 blocks, so a layer has one page of block states.
const DISK: usize = 64 << 10;
const HEADER: usize = 4096;
const STATES: usize = 4096;
const CRC: std::ops::Range<usize> = 44..48;

/// Input: how the layers are made, then for each layer the first bytes of its header and of its
/// states.
pub fn disk_layers(data: &[u8]) {
    let mut input = Input::new(data);
    let Some(how) = input.byte() else { return };
    let template = || file(&vec![0x33; DISK]);
    let mut layers = Vec::new();
    for _ in 0..1 + usize::from(how >> 6) {
        layers.push(layer(how, &mut input));
    }
    let files = || layers.iter().map(|bytes| file(bytes)).collect();
    let Ok(mut disk) = LayeredDisk::open(template(), files()) else { return };
    assert_eq!(disk.size(), DISK as u64);
    // A disk that could be opened works like any other.
    disk.flush().expect("the files are in memory");
    disk.freeze_and_push(file(b"")).expect("an empty file is a new layer");
    let device = BlockDevice::writable(template(), files()).expect("the same layers can be opened again");
    drop(device);
}

fn layer(how: u8, input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + STATES + DISK];
    if how & 1 == 0 {
        // A valid header, parts of which the input then overwrites.
        bytes[..8].copy_from_slice(b"SBVMLAYR");
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[16..24].copy_from_slice(&(DISK as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&(HEADER as u64).to_le_bytes());
        bytes[32..40].copy_from_slice(&((HEADER + STATES) as u64).to_le_bytes());
        bytes[40..44].copy_from_slice(&u32::from(how >> 1 & 1).to_le_bytes());
    }
    let changes = usize::from(input.byte().unwrap_or(0) % 64);
    for (byte, change) in bytes.iter_mut().zip(input.bytes(changes)) {
        *byte ^= change;
    }
    let states = input.bytes(24);
    bytes[HEADER..HEADER + states.len()].copy_from_slice(states);
    if how & 4 == 0 {
        bytes[CRC].fill(0);
        let crc = crc32fast::hash(&bytes[..HEADER]);
        bytes[CRC].copy_from_slice(&crc.to_le_bytes());
    }
    if how & 8 == 8 {
        bytes.truncate(usize::from(input.half().unwrap_or(0)) * 5);
    }
    bytes
}
