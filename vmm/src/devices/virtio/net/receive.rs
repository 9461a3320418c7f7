//! Where a received frame goes: one chain of the receive queue, or several if the driver merges buffers
//! (VIRTIO_NET_F_MRG_RXBUF, virtio 1.2, 5.1.6.4).

use super::frame::HEADER;
use crate::devices::virtio::{
    chain::Buffers,
    device::DeviceError,
    ring::{Direction, Ring},
    transfer::MAX_PIECES,
};
use std::sync::atomic::{Ordering, fence};

/// How often the queue is looked at again because the driver added to it meanwhile.
const LOOKS: usize = 4;

/// What the receive queue has for a frame.
#[derive(Debug)]
pub(super) enum Gathered<'m> {
    /// Room for all of it, and how many bytes of it go into each chain.
    Enough(Buffers<'m>, Vec<(u16, u32)>),
    /// Too little. All chains are back in the queue, and the driver notifies the device of the next one.
    NotYet,
    /// Too little at every look, and the driver kept adding to it. To be tried again in the next turn.
    Changing,
    /// Too little, and the driver cannot add to it: the frame fits no buffer of the driver.
    Never,
}

/// Takes chains for a frame of `length` bytes off the queue, one or, if the driver `merges` buffers, as many as it needs.
pub(super) fn gather<'m>(ring: &mut Ring<'m>, length: usize, merges: bool) -> Result<Gathered<'m>, DeviceError> {
    for _ in 0..LOOKS {
        let seen = ring.available_index()?;
        let mut buffers = Buffers::default();
        let mut used = Vec::new();
        let mut left = length;
        while left > 0 && (merges || used.is_empty()) {
            let Some(chain) = ring.pop(Direction::ToGuest)? else { break };
            if used.is_empty() && chain.writable.len() < HEADER as u64 {
                return Err(ring.bad_buffer("a receive buffer cannot hold the header of a frame"));
            }
            let taken = usize::try_from(chain.writable.len()).map_or(left, |room| room.min(left));
            left -= taken;
            // At most the length of a frame, which is below 2^17.
            used.push((chain.head, u32::try_from(taken).unwrap_or(u32::MAX)));
            buffers.append(chain.writable);
            // The header is received apart, and takes a piece more.
            if buffers.slices().count() >= MAX_PIECES {
                return Err(ring.bad_buffer("receive buffers are in too many pieces"));
            }
        }
        if left == 0 {
            return Ok(Gathered::Enough(buffers, used));
        }
        used.iter().for_each(|_| ring.undo_pop());
        let is_all = if merges { used.len() >= usize::from(ring.size()) } else { !used.is_empty() };
        if is_all {
            return Ok(Gathered::Never);
        }
        ring.notify_beyond(seen)?;
        // The wish for a notification must be seen before the index is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        if ring.available_index()? == seen {
            return Ok(Gathered::NotYet);
        }
    }
    Ok(Gathered::Changing)
}
