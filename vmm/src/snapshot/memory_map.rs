//! Where each page of guest memory is: runs of pages in numbered files. What no run covers is zero.
//!
//! Pages are numbered over all memory regions in ascending order, without the MMIO hole between them, and stand at the
//! same number in every file: a memory file is sparse and holds a page at 4096 times its number. A full snapshot of a
//! 256 MiB machine is one run; a snapshot of differences puts its runs over those of the one before.

use crate::memory::{
    GuestMemory,
    pages::{PAGE, host_address, page_count, split_at_regions},
};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use sandboxvm_protocol::vmm::MAX_MEMORY_FILES;
use serde::{Deserialize, Serialize};
use std::{fs::File, ops::Range, sync::Arc};

/// Most runs of one map. Each is a mapping of the restored process, and Linux allows 65530 in all; more than this and
/// the next snapshot is written whole.
pub const MAX_RUNS: usize = 4096;

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryMapError {
    /// It contradicts itself or the machine.
    #[error("the snapshot's memory map is damaged: {0}")]
    Damaged(&'static str),
    /// A memory file is too short.
    #[error("memory file {index} of the snapshot has {len} bytes where {needed} are needed; it is truncated")]
    Short {
        /// Number of the file.
        index: usize,
        /// Its length.
        len: u64,
        /// Length the map needs.
        needed: u64,
    },
    /// The host refuses.
    #[error("cannot map the snapshot's memory: {0}")]
    Map(std::io::Error),
}

/// Consecutive pages in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// First page.
    pub first: u64,
    /// Number of pages, at least one.
    pub count: u64,
    /// Number of the file.
    pub file: u16,
}

impl Run {
    fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

/// See the module. Runs are ascending and disjoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMap {
    runs: Vec<Run>,
}

impl MemoryMap {
    /// The runs, ascending.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// One run over all `pages`, in `file`.
    #[must_use]
    pub fn whole(pages: u64, file: u16) -> Self {
        Self { runs: vec![Run { first: 0, count: pages, file }] }
    }

    /// The file that holds `page`.
    #[must_use]
    pub fn file_of(&self, page: u64) -> Option<u16> {
        let next = self.runs.partition_point(|run| run.first <= page);
        self.runs[..next].last().filter(|run| page < run.end()).map(|run| run.file)
    }

    /// This map with `pages` (ascending, disjoint ranges) taken from `file` instead.
    #[must_use]
    pub fn overlaid(&self, pages: &[Range<u64>], file: u16) -> Self {
        let mut runs = Vec::with_capacity(self.runs.len() + 2 * pages.len());
        let mut over = pages.iter().filter(|range| !range.is_empty()).peekable();
        for run in &self.runs {
            let mut first = run.first;
            while let Some(range) = over.peek() {
                if range.start >= run.end() {
                    break;
                }
                if range.start > first {
                    runs.push(Run { first, count: range.start - first, file: run.file });
                }
                first = first.max(range.end);
                if range.end > run.end() {
                    break;
                }
                runs.push(Run { first: range.start, count: range.end - range.start, file });
                over.next();
            }
            if first < run.end() {
                runs.push(Run { first, count: run.end() - first, file: run.file });
            }
        }
        runs.extend(over.map(|range| Run { first: range.start, count: range.end - range.start, file }));
        runs.sort_by_key(|run| run.first);
        Self { runs: merge(runs) }
    }

    /// Checks a map that was read from a file against the machine it is for.
    fn check(&self, pages: u64, files: &[Arc<File>]) -> Result<(), MemoryMapError> {
        if self.runs.len() > MAX_RUNS {
            return Err(MemoryMapError::Damaged("too many runs"));
        }
        let mut free_from = 0;
        for run in &self.runs {
            let end = run.first.checked_add(run.count).ok_or(MemoryMapError::Damaged("a run overflows"))?;
            if run.count == 0 || run.first < free_from || end > pages {
                return Err(MemoryMapError::Damaged("a run is empty, out of order or beyond memory"));
            }
            free_from = end;
            let index = usize::from(run.file);
            let file = files.get(index).ok_or(MemoryMapError::Damaged("a run names a file that is not there"))?;
            let len = file.metadata().map_err(MemoryMapError::Map)?.len();
            if len < end * PAGE {
                return Err(MemoryMapError::Short { index, len, needed: end * PAGE });
            }
        }
        Ok(())
    }

    /// Maps `files` over `memory`, which was allocated and never touched. Nothing is read; the mappings are private, so
    /// nothing the guest writes reaches a file.
    ///
    /// # Errors
    /// When the map does not fit memory and files, or the host refuses a mapping. Memory must not be used then.
    pub fn map_over(&self, memory: &GuestMemory, files: &[Arc<File>]) -> Result<(), MemoryMapError> {
        if files.len() > MAX_MEMORY_FILES {
            return Err(MemoryMapError::Damaged("too many memory files"));
        }
        self.check(page_count(memory), files)?;
        for run in &self.runs {
            for part in split_at_regions(memory, run.first..run.end()) {
                map_run(memory, &part, &files[usize::from(run.file)])?;
            }
        }
        Ok(())
    }
}

fn merge(runs: Vec<Run>) -> Vec<Run> {
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last) if last.file == run.file && last.end() == run.first => last.count += run.count,
            _ => merged.push(run),
        }
    }
    merged
}

fn map_run(memory: &GuestMemory, pages: &Range<u64>, file: &File) -> Result<(), MemoryMapError> {
    let address = host_address(memory, pages.start).ok_or(MemoryMapError::Damaged("a run lies beyond memory"))?;
    let len = usize::try_from((pages.end - pages.start) * PAGE)
        .map_err(|_| MemoryMapError::Damaged("a run is longer than the address space"))?;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the range was checked to lie inside one region of `memory`, which owns this address range; MAP_FIXED
    // replaces pages of that region and nothing else, and the region's drop unmaps them with the rest.
    let mapped =
        unsafe { mmap(address.cast(), len, ProtFlags::READ | ProtFlags::WRITE, flags, file, pages.start * PAGE) };
    mapped.map(|_| ()).map_err(|error| MemoryMapError::Map(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlaying_agrees_with_a_table() {
        proptest!(|(layers in prop::collection::vec(prop::collection::btree_set(0u64..64, 0..40), 1..6))| {
            let mut table = [None; 64];
            let mut map = MemoryMap::default();
            for (file, pages) in layers.iter().enumerate() {
                let file = u16::try_from(file).unwrap();
                let ranges = ranges_of(pages.iter().copied());
                map = map.overlaid(&ranges, file);
                pages.iter().for_each(|page| table[usize::try_from(*page).unwrap()] = Some(file));
                let mut free_from = 0;
                for run in map.runs() {
                    prop_assert!(run.count > 0 && run.first >= free_from);
                    free_from = run.end();
                }
                for (page, file) in (0u64..).zip(&table) {
                    prop_assert_eq!(map.file_of(page), *file);
                }
            }
        });
    }

    fn ranges_of(pages: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in pages {
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => ranges.push(page..page + 1),
            }
        }
        ranges
    }
}
