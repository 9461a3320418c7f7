//! virtio-balloon (virtio 1.2, 5.5) for free page reporting alone: the guest says which of its memory is free, and the
//! host has it back until the guest writes there again.
//!
//! What a reported range reads as is anybody's until the guest writes it (5.5.6.7); here it is what a page reads as that
//! this machine never wrote: zero where it booted, its snapshot's content where it was restored. That was this machine's
//! own memory before, so no other's ever shows. A Linux that relies on the content of free pages (`init_on_free`, page
//! poisoning) reports nothing to a device without VIRTIO_BALLOON_F_PAGE_POISON. Which pages were let go is noted for
//! the next snapshot ([`ReleasedPages`]), since write tracking takes them for unwritten.
//!
//! The balloon itself stays empty: `num_pages` is 0 for ever. Two queues for it exist because the driver insists; what a
//! guest puts there by itself is handed back unread. It may do without the memory, and reporting is how to give it away.
//!
//! **The queue's number.** The specification has reporting_vq at 4. Linux leaves out queues whose features were not
//! offered and numbers the rest through (`vm_find_vqs` of 6.1, the kernel that boots here), so it is 2.
//!
//! A hostile guest gives away its own memory or stops its own device: ranges are checked by [`Chain`], rounded inwards to
//! pages, and counted. Reports are hints, so what goes beyond [`PAGES_PER_REPORT`] is taken and ignored.

use super::{
    chain::{Buffers, Chain},
    device::{DeviceContext, DeviceError, DeviceType, GuestMemory, VirtioDevice},
};
use crate::{
    memory,
    snapshot::{
        memory_map::{PAGE, host_ranges},
        released::ReleasedPages,
    },
};
use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};
use virtio_queue::QueueT;

/// The guest tells of free pages (5.5.3); virtio-bindings has no balloon.
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// Queues of the balloon that stays empty.
const BALLOON_QUEUE_SIZE: u16 = 16;
/// Where free pages are reported; see the module for its number.
pub const REPORTING: usize = 2;
/// Linux reports 32 ranges at a time (PAGE_REPORTING_CAPACITY), without indirect descriptors, and refuses less.
const REPORTING_QUEUE_SIZE: u16 = 32;

/// Pages of one report that are let go, the rest is kept: what Linux reports at most, 32 blocks of 4 MiB.
const PAGES_PER_REPORT: u64 = 32 * 1024;

/// A virtio-balloon device.
#[derive(Debug)]
pub struct BalloonDevice {
    released: Arc<ReleasedPages>,
    /// Readable while there may be more to serve.
    resume: OwnedFd,
}

impl BalloonDevice {
    /// A device that notes in `released` what it lets go.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new(released: Arc<ReleasedPages>) -> io::Result<Self> {
        Ok(Self { released, resume: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)? })
    }

    /// Serves one chain of `index`, then lets the event loop have its turn: there may be more.
    fn serve(&self, index: usize, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        let broken = |error: virtio_queue::Error| DeviceError::Queue { queue: index, what: error.to_string() };
        let memory = context.memory;
        let queue = &mut context.queues[index];
        let Some(chain) = Chain::pop(queue, memory).map_err(|error| error.on(index))? else { return Ok(()) };
        if index == REPORTING {
            if !chain.readable.is_empty() {
                let what = "a report of free pages has a device-readable buffer".to_owned();
                return Err(DeviceError::Queue { queue: index, what });
            }
            self.release(memory, &chain.writable)
                .map_err(|source| DeviceError::Host { what: "giving guest memory back", source })?;
        }
        // Nothing was written there.
        queue.add_used(memory, chain.head, 0).map_err(broken)?;
        if queue.needs_notification(memory).map_err(broken)? {
            context.interrupt.signal_used();
        }
        self.hand_back()
    }

    /// Gives the host back the whole pages of one report.
    fn release(&self, memory: &GuestMemory, reported: &Buffers<'_>) -> io::Result<()> {
        let regions = host_ranges(memory);
        let mut left = PAGES_PER_REPORT;
        for slice in reported.slices() {
            let start = slice.ptr_guard().as_ptr() as u64;
            let Some(mut pages) = whole_pages(&regions, start..start + slice.len() as u64) else { continue };
            pages.end = pages.end.min(pages.start + left);
            if pages.is_empty() {
                continue;
            }
            left -= pages.end - pages.start;
            // Noted first: a page that is noted and stays is compared for nothing, the other way round it is missed.
            self.released.add(pages.clone());
            memory::release(memory, pages)?;
        }
        Ok(())
    }

    /// Asks the event loop to come back.
    fn hand_back(&self) -> Result<(), DeviceError> {
        rustix::io::write(&self.resume, &1_u64.to_ne_bytes())
            .map(|_| ())
            .map_err(|error| DeviceError::Host { what: "asking for another turn", source: error.into() })
    }

    fn drain_resume(&self) {
        // Nothing to read is fine: a reset came in between.
        let _ = rustix::io::read(&self.resume, &mut [0; 8]);
    }
}

/// The pages that lie whole in `addresses`, which lie in one of `regions` (host addresses, and the number of their first
/// page). Regions begin at page boundaries on both sides, so a guest's page is a host's.
fn whole_pages(regions: &[(Range<u64>, u64)], addresses: Range<u64>) -> Option<Range<u64>> {
    let (region, first) = regions.iter().find(|(region, _)| region.contains(&addresses.start))?;
    let start = (addresses.start - region.start).div_ceil(PAGE);
    let end = (addresses.end.min(region.end) - region.start) / PAGE;
    (start < end).then(|| first + start..first + end)
}

impl VirtioDevice for BalloonDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn queue_limits(&self) -> &'static [u16] {
        &[BALLOON_QUEUE_SIZE, BALLOON_QUEUE_SIZE, REPORTING_QUEUE_SIZE]
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, _offset: u64, into: &mut [u8]) {
        // num_pages: the host wants none. What the driver writes to `actual` nobody reads.
        into.fill(0);
    }

    fn activate(&mut self, _context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn queue_notified(&mut self, queue: usize, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.serve(queue, context)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.resume.as_fd())
    }

    fn host_ready(&mut self, context: Option<&mut DeviceContext<'_>>) -> Result<(), DeviceError> {
        self.drain_resume();
        let Some(context) = context else { return Ok(()) };
        for index in 0..context.queues.len() {
            if context.queues[index].ready() {
                self.serve(index, context)?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.drain_resume();
    }
}
