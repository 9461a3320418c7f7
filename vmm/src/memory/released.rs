//! Pages that the guest gave back (free page reporting): they read again as what memory was mapped from, which is not
//! what a snapshot taken since may have of them.
//!
//! Neither way of finding written pages sees that: a dropped page does not belong to the process any more
//! ([`crate::snapshot::pagemap`]), and write tracking takes a page that is not there for unwritten ([`crate::snapshot::tracking`]). So they are
//! kept here, a bit each, and the next snapshot looks at them. A
//! process forked off the VMM has a copy.

use std::{
    iter,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// Bits of one word.
const BITS: u64 = u64::BITS as u64;

/// See the module. Atomic, so that no lock can be held where the process forks.
#[derive(Debug)]
pub struct ReleasedPages {
    words: Box<[AtomicU64]>,
}

impl ReleasedPages {
    /// For a machine with so many pages of memory; none of them is released.
    #[must_use]
    pub fn none_of(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(BITS)).expect("x86-64 has 64-bit usize");
        Self { words: iter::repeat_with(AtomicU64::default).take(words).collect() }
    }

    /// Adds `pages`; those beyond memory are left out.
    pub fn add(&self, pages: Range<u64>) {
        let last = pages.end.min(self.words.len() as u64 * BITS);
        let mut at = pages.start;
        while at < last {
            let end = last.min((at / BITS + 1) * BITS);
            let Some(word) = usize::try_from(at / BITS).ok().and_then(|index| self.words.get(index)) else { return };
            word.fetch_or(u64::MAX >> (BITS - (end - at)) << (at % BITS), Ordering::Relaxed);
            at = end;
        }
    }

    /// Takes all out, as ranges, ascending and disjoint. The vCPUs must stand, and no device be served.
    #[must_use]
    pub fn take(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (first, word) in (0..).step_by(64).zip(&self.words) {
            let mut bits = word.swap(0, Ordering::Relaxed);
            let mut at: u64 = first;
            while bits != 0 {
                let skipped = u64::from(bits.trailing_zeros());
                bits >>= skipped;
                at += skipped;
                let count = u64::from(bits.trailing_ones());
                bits = bits.checked_shr(bits.trailing_ones()).unwrap_or(0);
                match ranges.last_mut() {
                    Some(last) if last.end == at => last.end = at + count,
                    _ => ranges.push(at..at + count),
                }
                at += count;
            }
        }
        ranges
    }

    /// Puts back what [`ReleasedPages::take`] returned.
    pub fn put_back(&self, ranges: Vec<Range<u64>>) {
        ranges.into_iter().for_each(|pages| self.add(pages));
    }
}

/// The pages of both, ascending and disjoint as they are.
#[must_use]
pub fn union(some: Vec<Range<u64>>, others: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all = some;
    all.extend(others);
    // Two sorted runs, which this sort merges in one pass.
    all.sort_by_key(|pages| pages.start);
    let mut united: Vec<Range<u64>> = Vec::with_capacity(all.len());
    for pages in all {
        match united.last_mut() {
            Some(last) if pages.start <= last.end => last.end = last.end.max(pages.end),
            _ => united.push(pages),
        }
    }
    united
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const PAGES: u64 = 300;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0..PAGES, 0..PAGES).prop_map(|(a, b)| a.min(b)..a.max(b)), 0..12)
    }

    fn pages_of(ranges: &[Range<u64>]) -> BTreeSet<u64> {
        ranges.iter().cloned().flatten().collect()
    }

    fn are_ascending_and_apart(ranges: &[Range<u64>]) -> bool {
        ranges.iter().all(|range| !range.is_empty()) && ranges.windows(2).all(|pair| pair[0].end < pair[1].start)
    }

    proptest! {
        #[test]
        fn what_is_added_is_taken_once(added in ranges(), later in ranges()) {
            let released = ReleasedPages::none_of(PAGES);
            added.iter().cloned().for_each(|range| released.add(range));
            let taken = released.take();
            prop_assert!(are_ascending_and_apart(&taken));
            prop_assert_eq!(pages_of(&taken), pages_of(&added));
            prop_assert_eq!(released.take(), []);
            released.put_back(taken);
            later.iter().cloned().for_each(|range| released.add(range));
            let both: Vec<_> = added.iter().chain(&later).cloned().collect();
            prop_assert_eq!(pages_of(&released.take()), pages_of(&both));
        }

        #[test]
        fn a_union_has_the_pages_of_both(some in ranges(), others in ranges()) {
            let tidy = |ranges: &[Range<u64>]| {
                let released = ReleasedPages::none_of(PAGES);
                ranges.iter().cloned().for_each(|range| released.add(range));
                released.take()
            };
            let (some, others) = (tidy(&some), tidy(&others));
            let both = pages_of(&some).union(&pages_of(&others)).copied().collect();
            let united = union(some, others);
            prop_assert!(are_ascending_and_apart(&united));
            prop_assert_eq!(pages_of(&united), both);
        }
    }

    #[test]
    fn pages_beyond_memory_are_left_out() {
        let released = ReleasedPages::none_of(64);
        released.add(60..u64::MAX);
        released.add(u64::MAX - 1..u64::MAX);
        assert_eq!(released.take().as_slice(), std::slice::from_ref(&(60..64)));
    }
}
