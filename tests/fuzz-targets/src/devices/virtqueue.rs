//! A virtqueue with any content. Every chain that the queue returns must be complete and in guest
//! memory. The number of chains must be finite, even if the rings overlap and a returned chain
//! changes the next one. Nothing may panic.

use crate::input::Input;
use sandboxvm_vmm::{devices::virtio::chain::Chain, memory::GuestMemory};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const MEMORY: usize = 0x1_0000;
/// Far more chains than possible: both indices wrap once, with a full queue at each value.
const MOST_CHAINS: u32 = 1 << 17;

/// Input: addresses and size of the rings, the device's position in the ring, then the content of
/// memory.
pub fn virtqueue(data: &[u8]) {
    let _ = run(Input::new(data));
}

fn run(mut input: Input<'_>) -> Option<()> {
    // Two adjacent regions, and one behind a gap.
    let ranges =
        [(GuestAddress(0), MEMORY / 2), (GuestAddress(0x8000), MEMORY / 4), (GuestAddress(0x1_4000), MEMORY / 4)];
    let memory = GuestMemory::from_ranges(&ranges).expect("memory for a small guest");
    let mut queue = Queue::new(64).expect("a power of two");
    let size = 1 << (input.byte()? % 7);
    queue.try_set_size(size).expect("at most 64");
    // Aligned addresses, in memory and somewhat beyond.
    let mut place = |step: u64| Some(u64::from(input.half()?) * 2 / step * step);
    let (table, available, used) = (place(16)?, place(2)?, place(4)?);
    queue.try_set_desc_table_address(GuestAddress(table)).expect("aligned to 16");
    queue.try_set_avail_ring_address(GuestAddress(available)).expect("aligned to 2");
    queue.try_set_used_ring_address(GuestAddress(used)).expect("aligned to 4");
    queue.set_event_idx(input.byte()? & 1 == 1);
    let (next_available, held) = (input.half()?, input.half()? % (size + 1));
    queue.set_next_avail(next_available);
    queue.set_next_used(next_available.wrapping_sub(held));
    queue.set_ready(true);
    let _ = memory.write_slice(input.rest(), GuestAddress(0)).is_ok_and(|()| true);
    if !queue.is_valid(&memory) {
        return None;
    }
    let mut chains = 0;
    while let Ok(Some(mut chain)) = Chain::pop(&mut queue, &memory) {
        chains += 1;
        assert!(chains <= MOST_CHAINS, "the queue never ends");
        assert!(chain.head < size);
        let total = chain.readable.len() + chain.writable.len();
        assert!(total > 0 && total <= u64::from(u32::MAX));
        let pieces: Vec<_> = chain.readable.slices().chain(chain.writable.slices()).map(|slice| slice.len()).collect();
        assert!(pieces.iter().all(|length| *length > 0));
        assert_eq!(pieces.iter().map(|length| *length as u64).sum::<u64>(), total);
        // Many descriptors may name the same buffer, but each must be in memory.
        assert!(total <= u64::from(size) * MEMORY as u64 && memory.num_regions() == 3);
        let mut some = [0; 300];
        let read = chain.readable.read(&mut some) as u64;
        let status = chain.writable.split_last();
        assert!(status.is_none_or(|status| status.len() == 1));
        let written = chain.writable.write(&some) as u64;
        chain.readable.advance(7);
        chain.writable.write_zeros(5000);
        assert!(read + written <= total);
        // The write may have overwritten the ring itself.
        if queue.add_used(&memory, chain.head, 1).is_err() || queue.needs_notification(&memory).is_err() {
            break;
        }
    }
    let _ = queue.enable_notification(&memory);
    Some(())
}
