//! virtio-balloon (virtio 1.2, 5.5) for free page reporting alone: the guest says which of its memory is free, and the
//! host has it back until the guest writes there again.
//!
//! What a reported range reads as is undefined until the guest writes it (5.5.6.7). Here it is the content of a page that
//! this machine never wrote: zero where it booted, its snapshot's content where it was restored. Both were this machine's
//! memory before, so no other machine's memory ever shows. A Linux that relies on the content of free pages (`init_on_free`, page
//! poisoning) reports nothing to a device without VIRTIO_BALLOON_F_PAGE_POISON. Which pages were released is noted for
//! the next snapshot ([`ReleasedPages`]), since write tracking takes them for unwritten.
//!
//! The balloon itself stays empty: `num_pages` is always 0. Two queues for it exist because the driver requires them;
//! buffers that a guest puts there are handed back unread. A guest gives memory away by reporting it.
//!
//! **The queue's number.** The specification has reporting_vq at 4. Linux leaves out queues whose features were not
//! offered and numbers the rest through (`vm_find_vqs` of 6.1, the kernel that boots here), so it is 2.
//!
//! A hostile guest gives away its own memory or stops its own device: ranges are checked by [`Chain`], rounded inwards to
//! pages, and counted. Reports are hints, so what goes beyond [`PAGES_PER_REPORT`] is taken and ignored.

mod kind;

pub use kind::BalloonKind;

use super::{
    chain::{Buffers, Chain},
    device::{DeviceContext, DeviceError, DeviceType, VirtioDevice},
    resume::Resume,
};
use crate::{
    memory,
    memory::{
        GuestMemory,
        pages::{PAGE, host_ranges},
        released::ReleasedPages,
    },
};
use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};
use virtio_queue::QueueT;

/// Memory balloon device (virtio 1.2, 5.5).
const TYPE: DeviceType = DeviceType::new(5, "Balloon");

/// The guest reports free pages (5.5.3); virtio-bindings has no balloon.
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// Queues of the balloon that stays empty.
const BALLOON_QUEUE_SIZE: u16 = 16;
/// Where free pages are reported; see the module for its number.
pub const REPORTING: usize = 2;
/// Linux reports 32 ranges at a time (PAGE_REPORTING_CAPACITY), without indirect descriptors, and refuses less.
const REPORTING_QUEUE_SIZE: u16 = 32;

/// Pages of one report that are released, the rest is kept: what Linux reports at most, 32 blocks of 4 MiB.
const PAGES_PER_REPORT: u64 = 32 * 1024;

/// A virtio-balloon device.
#[derive(Debug)]
pub struct BalloonDevice {
    released: Arc<ReleasedPages>,
    /// Readable while there may be more to serve.
    resume: Resume,
}

impl BalloonDevice {
    /// A device that notes in `released` what it releases.
    ///
    /// # Errors
    /// When timerfd_create(2) fails.
    pub fn new(released: Arc<ReleasedPages>) -> io::Result<Self> {
        Ok(Self { released, resume: Resume::new()? })
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
        self.resume.now()
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
        TYPE
    }

    fn queue_limits(&self) -> &'static [u16] {
        &[BALLOON_QUEUE_SIZE, BALLOON_QUEUE_SIZE, REPORTING_QUEUE_SIZE]
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, _offset: u64, into: &mut [u8]) {
        // num_pages: the host wants none. The device ignores what the driver writes to `actual`.
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
        self.resume.drain();
        let Some(context) = context else { return Ok(()) };
        for index in 0..context.queues.len() {
            if context.queues[index].ready() {
                self.serve(index, context)?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.resume.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        devices::virtio::mock_driver::{BUFFERS, HIGH_END, HIGH_START, LOW_END, MockDriver, Part},
        memory::pages::page_count,
        snapshot::memory_map::MemoryMap,
    };
    use proptest::prelude::*;
    use std::{fs::File, os::unix::fs::FileExt};
    use vm_memory::{Bytes, GuestAddress};

    /// First page of the high region, which lies behind 256 pages of the low one.
    const HIGH_PAGE: u64 = LOW_END / PAGE;
    const PAGES: u64 = HIGH_PAGE + (HIGH_END - HIGH_START) / PAGE;

    fn driver() -> (MockDriver, Arc<ReleasedPages>) {
        let released = Arc::new(ReleasedPages::none_of(PAGES));
        let driver = MockDriver::live(Box::new(BalloonDevice::new(Arc::clone(&released)).unwrap()));
        assert_eq!(page_count(&driver.memory), PAGES);
        (driver, released)
    }

    /// Fills memory, but for where the rings are.
    fn fill(driver: &MockDriver) {
        driver.fill(BUFFERS, &vec![7; usize::try_from(LOW_END - BUFFERS).unwrap()]);
        driver.fill(HIGH_START, &vec![7; usize::try_from(HIGH_END - HIGH_START).unwrap()]);
    }

    fn report(driver: &mut MockDriver, parts: &[Part]) {
        let used = driver.used_index(REPORTING);
        driver.set_chain(REPORTING, 0, parts);
        driver.publish(REPORTING, 0);
        driver.kick(REPORTING);
        assert!(!driver.needs_reset(), "{:?}", driver.transport);
        assert_eq!(driver.used_index(REPORTING), used.wrapping_add(1));
        assert_eq!(driver.last_used(REPORTING), (0, 0), "nothing is written to what is reported");
    }

    /// Bytes of `length` at `address` that are zero.
    fn zeros(driver: &MockDriver, address: u64, length: u64) -> usize {
        driver.bytes(address, usize::try_from(length).unwrap()).iter().filter(|byte| **byte == 0).count()
    }

    #[test]
    fn what_linux_wants_to_see_is_there() {
        let (mut driver, _) = driver();
        assert_eq!(driver.offered_features(), 1 << 32 | 1 << 5);
        assert_eq!(driver.transport.queue_count(), 3);
        assert!(driver.rings(REPORTING).size >= 32, "Linux refuses fewer (PAGE_REPORTING_CAPACITY)");
        let mut config = [1; 16];
        driver.transport.read(0x100, &mut config);
        assert_eq!(config, [0; 16], "the balloon stays empty");
    }

    #[test]
    fn whole_pages_are_given_back_and_nothing_beside_them() {
        let (mut driver, released) = driver();
        fill(&driver);
        // From the middle of a page to the middle of another; less than a page; the last page of a region; all but one
        // byte of one; and one that is in there twice.
        report(
            &mut driver,
            &[
                Part::Writable(BUFFERS + 100, 3 * 4096),
                Part::Writable(BUFFERS + 0x1_0000 + 1, 4096),
                Part::Writable(LOW_END - 4096, 4096),
                Part::Writable(HIGH_START, 4095),
                Part::Writable(HIGH_START + 4096, 8192),
                Part::Writable(HIGH_START + 8192, 8192),
            ],
        );
        let first = BUFFERS / PAGE;
        let expected = [first + 1..first + 3, HIGH_PAGE - 1..HIGH_PAGE, HIGH_PAGE + 1..HIGH_PAGE + 4];
        assert_eq!(released.take(), expected);
        for (address, length) in [(BUFFERS + 4096, 8192), (LOW_END - 4096, 4096), (HIGH_START + 4096, 12288)] {
            assert_eq!(zeros(&driver, address, length), usize::try_from(length).unwrap());
        }
        let all = zeros(&driver, BUFFERS, LOW_END - BUFFERS) + zeros(&driver, HIGH_START, HIGH_END - HIGH_START);
        assert_eq!(all, 6 * 4096);
        assert_eq!(driver.take_interrupts(), 1);
    }

    #[test]
    fn in_a_restored_machine_the_snapshot_shows_again_and_stays_as_it_was() {
        let (mut driver, _) = driver();
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGES * PAGE).unwrap();
        file.write_all_at(&[3; 8192], HIGH_PAGE * PAGE).unwrap();
        let map = MemoryMap::default().overlaid(std::slice::from_ref(&(HIGH_PAGE..PAGES)), 0);
        map.map_over(&driver.memory, &[Arc::new(File::try_clone(&file).unwrap())]).unwrap();
        driver.fill(HIGH_START, &[7; 3 * 4096]);
        report(&mut driver, &[Part::Writable(HIGH_START + 4096, 8192)]);
        assert_eq!(driver.bytes(HIGH_START, 4096), [7; 4096]);
        assert_eq!(driver.bytes(HIGH_START + 4096, 4096), [3; 4096]);
        assert_eq!(driver.bytes(HIGH_START + 8192, 4096), [0; 4096]);
        let mut kept = [0; 8192];
        file.read_exact_at(&mut kept, HIGH_PAGE * PAGE).unwrap();
        assert_eq!(kept, [3; 8192]);
    }

    #[test]
    fn a_report_of_all_memory_many_times_over_is_cut() {
        // Never touched, so it takes no host memory.
        let pages = 2 * PAGES_PER_REPORT;
        let len = usize::try_from(pages * PAGE).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        let released = Arc::new(ReleasedPages::none_of(pages));
        let device = BalloonDevice::new(Arc::clone(&released)).unwrap();
        let last = GuestAddress((PAGES_PER_REPORT + 8) * PAGE);
        memory.write_obj(9_u8, last).unwrap();
        memory.write_obj(9_u8, GuestAddress(16 * PAGE)).unwrap();
        let mut reported = Buffers::default();
        for start in [16, 8, 0] {
            reported.push(&memory, GuestAddress(start * PAGE), u32::try_from(len / 2).unwrap()).unwrap();
        }
        device.release(&memory, &reported).unwrap();
        assert_eq!(released.take().as_slice(), std::slice::from_ref(&(16..16 + PAGES_PER_REPORT)));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(16 * PAGE)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(last).unwrap(), 0);
    }

    #[test]
    fn a_report_of_the_queue_itself_hurts_the_guest_alone() {
        for length in [4096, 0x8000, 0x2_0000] {
            let (mut driver, _) = driver();
            fill(&driver);
            let rings = driver.rings(REPORTING);
            driver.set_chain(
                REPORTING,
                0,
                &[Part::Writable(rings.descriptors, length), Part::Writable(HIGH_START, 4096)],
            );
            driver.publish(REPORTING, 0);
            driver.kick(REPORTING);
            // It was read before it went, so the second buffer counts.
            assert_eq!(zeros(&driver, HIGH_START, 8192), 4096);
            assert_eq!(driver.used_index(REPORTING), 1);
        }
    }

    #[test]
    fn a_buffer_to_read_from_is_no_report() {
        let (mut driver, released) = driver();
        fill(&driver);
        driver.set_chain(REPORTING, 0, &[Part::Readable(HIGH_START, 4096), Part::Writable(HIGH_START + 4096, 4096)]);
        driver.publish(REPORTING, 0);
        driver.kick(REPORTING);
        assert!(driver.needs_reset());
        assert_eq!(zeros(&driver, HIGH_START, 8192), 0);
        assert_eq!(released.take(), []);
    }

    #[test]
    fn what_is_put_into_the_balloon_comes_back_unread() {
        let (mut driver, released) = driver();
        fill(&driver);
        for queue in 0..REPORTING {
            // Page numbers, which the device does not look at.
            driver.fill(BUFFERS, &u32::try_from(HIGH_START / PAGE).unwrap().to_le_bytes());
            driver.set_chain(queue, 0, &[Part::Readable(BUFFERS, 4)]);
            driver.publish(queue, 0);
            driver.kick(queue);
            assert_eq!(driver.used_index(queue), 1);
        }
        assert_eq!(zeros(&driver, HIGH_START, 4096), 0);
        assert_eq!(released.take(), []);
    }

    #[test]
    fn every_turn_serves_one_report() {
        let (mut driver, _) = driver();
        for head in 0..32 {
            driver.set_chain(REPORTING, head, &[Part::Writable(HIGH_START + 4096 * u64::from(head), 4096)]);
            driver.publish(REPORTING, head);
        }
        assert!(driver.kick_for(REPORTING, 0), "it wants another turn");
        assert_eq!(driver.used_index(REPORTING), 1);
        assert!(driver.kick_for(REPORTING, 30));
        driver.kick(REPORTING);
        assert_eq!(driver.used_index(REPORTING), 32);
    }

    #[test]
    fn others_may_touch_what_is_being_given_back() {
        let (mut driver, _) = driver();
        let memory = Arc::clone(&driver.memory);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // As a vCPU or another device would.
        let other = std::thread::spawn(move || {
            let mut bytes = [5; 3 * 4096];
            let mut rounds = 0_u64;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                memory.write_slice(&bytes, GuestAddress(HIGH_START + 1000)).unwrap();
                memory.read_slice(&mut bytes, GuestAddress(HIGH_START + 1000)).unwrap();
                assert!(bytes.iter().all(|byte| [0, 5].contains(byte)));
                bytes.fill(5);
                rounds += 1;
            }
            rounds
        });
        for _ in 0..2000 {
            report(&mut driver, &[Part::Writable(HIGH_START, 4 * 4096)]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(other.join().unwrap() > 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is reported: pages that lie in it whole read as zero, all others are as they were.
        #[test]
        fn exactly_whole_pages_go(ranges in prop::collection::vec((0_u64..48 * 4096, 1_u32..40_000), 1..32)) {
            let (mut driver, released) = driver();
            fill(&driver);
            let parts: Vec<_> = ranges.iter().map(|(at, len)| Part::Writable(HIGH_START + at, *len)).collect();
            report(&mut driver, &parts);
            let goes = |page: u64| {
                ranges.iter().any(|(at, len)| *at <= page * PAGE && (page + 1) * PAGE <= at + u64::from(*len))
            };
            let noted: Vec<u64> = released.take().into_iter().flatten().collect();
            let expected: Vec<u64> = (0..64).filter(|page| goes(*page)).map(|page| HIGH_PAGE + page).collect();
            prop_assert_eq!(noted, expected);
            for page in 0..64 {
                let zeros = zeros(&driver, HIGH_START + page * PAGE, PAGE);
                prop_assert_eq!(zeros, if goes(page) { 4096 } else { 0 });
            }
        }
    }
}
