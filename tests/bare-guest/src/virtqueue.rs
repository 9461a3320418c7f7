//! A split virtqueue (virtio 1.2, 2.7) as bytes in a guest's memory: descriptors, chains, and where
//! the parts of a queue are. Nothing here enforces a rule of virtio: a test may write any value,
//! valid or not. The tests of the VMM's devices use it as well.

use crate::{Image, Script, Width};

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// A combination of [`NEXT`], [`WRITE`] and [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Descriptor {
    /// Returns the encoding in memory.
    #[must_use]
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A buffer of a valid chain: address and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The device reads the buffer.
    Readable(u64, u32),
    /// The device writes the buffer.
    Writable(u64, u32),
}

/// Returns the descriptors of a valid chain in `first`, `first + 1` and so on, each with its index.
pub fn chain(first: u16, parts: &[Part]) -> impl Iterator<Item = (u16, Descriptor)> + '_ {
    let last = parts.len().saturating_sub(1);
    (0..).zip(parts).map(move |(position, part)| {
        let index = first.wrapping_add(position);
        let more = if usize::from(position) < last { NEXT } else { 0 };
        let (address, length, flags) = match *part {
            Part::Readable(address, length) => (address, length, more),
            Part::Writable(address, length) => (address, length, more | WRITE),
        };
        (index, Descriptor { address, length, flags, next: index.wrapping_add(1) })
    })
}

/// The addresses of a virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// Number of descriptors.
    pub size: u32,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
}

impl Rings {
    /// Size of the memory that [`Rings::at`] uses.
    pub const BYTES: u64 = 0x3000;

    /// Returns a queue from `base` on, with one page for each of its three parts.
    #[must_use]
    pub fn at(base: u64, size: u32) -> Self {
        Self { size, descriptors: base, available: base + 0x1000, used: base + 0x2000 }
    }

    /// Returns the address of descriptor `index`.
    #[must_use]
    pub fn descriptor(&self, index: u16) -> u64 {
        self.descriptors + 16 * u64::from(index)
    }

    /// Sets the initial content of descriptor `index`.
    pub fn put(&self, image: &mut Image, index: u16, descriptor: Descriptor) {
        image.put(self.descriptor(index), &descriptor.encode());
    }

    /// Describes `parts` in the descriptors `first`, `first + 1` and so on.
    pub fn put_chain(&self, image: &mut Image, first: u16, parts: &[Part]) {
        for (index, descriptor) in chain(first, parts) {
            self.put(image, index, descriptor);
        }
    }

    /// Sets the initial heads of the available ring. None of them is published.
    pub fn put_heads(&self, image: &mut Image, heads: &[u16]) {
        let bytes: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
        image.put(self.available + 4, &bytes);
    }

    /// Sets the available index, which passes all heads before it to the device.
    pub fn publish(&self, script: &mut Script, index: u16) {
        script.write(Width::Half, self.available + 2, index.into());
    }

    /// Waits until the device has returned `count` chains in total.
    pub fn wait_used(&self, script: &mut Script, count: u16) {
        script.wait_for_index(self.used, count, false);
    }

    /// Gives up unless the device has returned exactly this many chains.
    pub fn expect_used(&self, script: &mut Script, count: u16) {
        script.expect(Width::Half, self.used + 2, count.into());
    }
}
