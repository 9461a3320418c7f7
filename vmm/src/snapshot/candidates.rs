//! Which pages the next snapshot has to look at: those that may differ from the one before. Too many cost the writer time;
//! one too few and the snapshot is not what the guest saw. The vCPUs
//! must be paused meanwhile.

use super::{pagemap, tracking::WriteTracking, writer::Baseline};
use crate::memory::{GuestMemory, released::union};
use std::{fs::File, io, ops::Range};

/// What is known of a machine's memory.
#[derive(Debug)]
pub struct Known<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// /proc/PID/pagemap of this process.
    pub pagemap: &'a File,
    /// The snapshot that memory was mapped from, where it was and that is known.
    pub origin: Option<&'a Baseline>,
    /// The last snapshot.
    pub baseline: &'a Baseline,
    /// Pages given back since then, see [`crate::memory::released::ReleasedPages`].
    pub released: &'a [Range<u64>],
}

/// Ranges of page numbers, ascending and disjoint, that may differ from the last snapshot; from here on `tracking` is of
/// what is written after this one.
///
/// # Errors
/// When the kernel does not say what was written.
pub fn candidates(known: &Known<'_>, tracking: &mut Option<WriteTracking>) -> io::Result<Vec<Range<u64>>> {
    let written = written_pages(known, tracking)?;
    // A page that was given back reads as what is beneath: where that is the last snapshot, it does not differ.
    if known.released.is_empty() || known.baseline.is_beneath(known.origin) {
        return Ok(written);
    }
    Ok(union(written, known.released.to_vec()))
}

fn written_pages(known: &Known<'_>, tracking: &mut Option<WriteTracking>) -> io::Result<Vec<Range<u64>>> {
    let Known { memory, pagemap, .. } = *known;
    if let Some(Ok(written)) = tracking.as_ref().map(|tracking| tracking.take(memory, pagemap)) {
        return Ok(written);
    }
    // In this order: the marks that tracking leaves where nothing was ever touched read as swapped pages there.
    let written = pagemap::written_pages(pagemap, memory)?;
    // An older kernel has no such thing: then every snapshot looks at all that was ever written.
    *tracking = WriteTracking::begin(memory, pagemap).ok();
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        memory,
        memory::{pages::PAGE, released::ReleasedPages},
        snapshot::{memory_map::MemoryMap, writer},
    };
    use proptest::prelude::*;
    use std::{os::unix::fs::FileExt, sync::Arc};
    use vm_memory::{Bytes, GuestAddress};

    const LOW: u64 = 24;
    const PAGES: u64 = 40;
    const HIGH: u64 = 1 << 32;

    fn fresh() -> GuestMemory {
        let len = |pages: u64| usize::try_from(pages * PAGE).unwrap();
        GuestMemory::from_ranges(&[(GuestAddress(0), len(LOW)), (GuestAddress(HIGH), len(PAGES - LOW))]).unwrap()
    }

    fn address(page: u64) -> GuestAddress {
        GuestAddress(if page < LOW { page * PAGE } else { HIGH + (page - LOW) * PAGE })
    }

    fn content(memory: &GuestMemory) -> Vec<[u8; 4096]> {
        let page_at = |page| {
            let mut bytes = [0; 4096];
            memory.read_slice(&mut bytes, address(page)).unwrap();
            bytes
        };
        (0..PAGES).map(page_at).collect()
    }

    /// As a machine has them that is restored from `snapshot`.
    fn restored(snapshot: &Baseline) -> GuestMemory {
        let memory = fresh();
        snapshot.map.map_over(&memory, &snapshot.files).unwrap();
        memory
    }

    /// What the VMM keeps of a machine's memory, in the way the event loop does.
    struct Guest {
        memory: GuestMemory,
        pagemap: File,
        origin: Option<Baseline>,
        baseline: Baseline,
        released: Arc<ReleasedPages>,
        tracking: Option<WriteTracking>,
        /// A kernel without write tracking.
        never_tracks: bool,
    }

    impl Guest {
        fn of(origin: Option<Baseline>, never_tracks: bool) -> Self {
            Self {
                memory: origin.as_ref().map_or_else(fresh, restored),
                pagemap: File::open("/proc/self/pagemap").unwrap(),
                baseline: origin.clone().unwrap_or_default(),
                origin,
                released: Arc::new(ReleasedPages::none_of(PAGES)),
                tracking: None,
                never_tracks,
            }
        }

        fn write(&self, page: u64, byte: u8) {
            self.memory.write_slice(&[byte; 100], address(page)).unwrap();
        }

        fn give_back(&self, pages: Range<u64>) {
            self.released.add(pages.clone());
            memory::release(&self.memory, pages).unwrap();
        }

        /// Takes a snapshot, and returns what it writes. One that fails changes nothing but what is tracked.
        fn snapshot(&mut self, full: bool, fails: bool) {
            let released = self.released.take();
            let known = Known {
                memory: &self.memory,
                pagemap: &self.pagemap,
                origin: self.origin.as_ref(),
                baseline: &self.baseline,
                released: &released,
            };
            let mut tracking = self.tracking.take();
            let candidates = candidates(&known, &mut tracking).unwrap();
            if fails {
                self.released.put_back(released);
                return;
            }
            let file = tempfile::tempfile().unwrap();
            let written = writer::write(&self.memory, &candidates, &self.baseline, &file, full).unwrap();
            if written.self_contained {
                self.baseline.files.clear();
            }
            self.baseline.files.push(Arc::new(file));
            self.baseline.map = written.map;
            self.tracking = tracking.filter(|_| !self.never_tracks);
        }

        /// A restored machine sees what this one does.
        fn assert_snapshot_is_true(&self) {
            let (here, there) = (content(&self.memory), content(&restored(&self.baseline)));
            for page in 0..PAGES {
                let at = usize::try_from(page).unwrap();
                assert!(here[at] == there[at], "page {page}: {} here, {} restored", here[at][0], there[at][0]);
            }
        }

        fn reset(&mut self) {
            let origin = self.origin.clone().unwrap();
            self.tracking = None;
            memory::forget_writes(&self.memory).unwrap();
            let _ = self.released.take();
            self.baseline = origin;
        }
    }

    /// A snapshot with some pages that are not zero.
    fn some_snapshot() -> Baseline {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGES * PAGE).unwrap();
        for page in (0..PAGES).step_by(3) {
            file.write_all_at(&[200; 4096], page * PAGE).unwrap();
        }
        Baseline { map: MemoryMap::whole(PAGES, 0), files: vec![Arc::new(file)] }
    }

    /// The case that write tracking alone gets wrong: a page is written, kept in a snapshot and given back. It reads as what
    /// is beneath again, without having been written.
    #[test]
    fn a_page_given_back_after_a_snapshot_is_in_the_next_as_it_reads() {
        for origin in [None, Some(some_snapshot())] {
            for never_tracks in [false, true] {
                let mut guest = Guest::of(origin.clone(), never_tracks);
                guest.write(3, 1);
                guest.write(30, 2);
                guest.snapshot(false, false);
                guest.assert_snapshot_is_true();
                guest.give_back(3..4);
                guest.give_back(30..31);
                assert_eq!(content(&guest.memory)[3][0], if origin.is_some() { 200 } else { 0 });
                guest.snapshot(false, false);
                guest.assert_snapshot_is_true();
                // The next snapshot has looked at them: pages given back are not kept for later ones.
                assert_eq!(guest.released.take(), []);
            }
        }
    }

    #[test]
    fn a_failed_snapshot_forgets_nothing() {
        let mut guest = Guest::of(None, false);
        guest.write(3, 1);
        guest.snapshot(false, false);
        guest.give_back(3..4);
        guest.snapshot(false, true);
        guest.snapshot(false, false);
        guest.assert_snapshot_is_true();
    }

    /// What a parent gives back stays its child's, and the child's next snapshot is true though the parent gave back
    /// before.
    #[test]
    fn a_forked_child_keeps_what_its_parent_gives_back() {
        for origin in [None, Some(some_snapshot())] {
            let mut guest = Guest::of(origin, false);
            (0..PAGES).for_each(|page| guest.write(page, 50));
            guest.snapshot(false, false);
            guest.give_back(0..5);
            let before = content(&guest.memory);
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            // SAFETY: the child uses its own copy of memory, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                drop(writer);
                // Until the parent has given all of it back.
                let _ = rustix::io::read(&reader, &mut [0]);
                let sees_the_same = content(&guest.memory) == before;
                // As fork.rs and session.rs have it: no origin, no tracking, the parent's list.
                guest.origin = None;
                std::mem::forget(guest.tracking.take());
                guest.pagemap = File::open("/proc/self/pagemap").unwrap();
                guest.give_back(20..30);
                guest.snapshot(false, false);
                let is_true = content(&guest.memory) == content(&restored(&guest.baseline));
                // SAFETY: ends the child, which shares nothing but files.
                unsafe { libc::_exit(i32::from(!(sees_the_same && is_true))) };
            }
            guest.give_back(0..PAGES);
            drop(writer);
            let mut status = -1;
            // SAFETY: our own child; the status is a live integer.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(status, 0, "the child sees what its parent did, or snapshots something else");
            guest.snapshot(false, false);
            guest.assert_snapshot_is_true();
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Write(u64, u8),
        Read(u64),
        GiveBack(Range<u64>),
        Snapshot { full: bool, fails: bool },
        Reset,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            8 => (0..PAGES, 1..100_u8).prop_map(|(page, byte)| Act::Write(page, byte)),
            2 => (0..PAGES).prop_map(Act::Read),
            5 => (0..PAGES, 1..12_u64).prop_map(|(page, count)| Act::GiveBack(page..(page + count).min(PAGES))),
            3 => (prop::bool::weighted(0.1), prop::bool::weighted(0.2))
                .prop_map(|(full, fails)| Act::Snapshot { full, fails }),
            1 => Just(Act::Reset),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_snapshot_is_what_the_guest_saw(
            is_restored in any::<bool>(),
            never_tracks in any::<bool>(),
            acts in prop::collection::vec(act(), 1..60),
        ) {
            let mut guest = Guest::of(is_restored.then(some_snapshot), never_tracks);
            for act in acts {
                match act {
                    Act::Write(page, byte) => guest.write(page, byte),
                    Act::Read(page) => _ = guest.memory.read_obj::<u8>(address(page)).unwrap(),
                    Act::GiveBack(pages) => guest.give_back(pages),
                    Act::Snapshot { full, fails } => {
                        guest.snapshot(full, fails);
                        if !fails {
                            guest.assert_snapshot_is_true();
                        }
                    }
                    Act::Reset if is_restored => {
                        guest.reset();
                        prop_assert!(content(&guest.memory) == content(&restored(guest.origin.as_ref().unwrap())));
                    }
                    Act::Reset => {}
                }
            }
            guest.snapshot(false, false);
            guest.assert_snapshot_is_true();
        }
    }
}
