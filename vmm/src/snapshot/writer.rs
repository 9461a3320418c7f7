//! Writing a snapshot's memory: which of the written pages really differ from the snapshot before, and where they go.
//! Runs in a process forked off the VMM for this alone, on a copy of memory that does not change any more.

use super::memory_map::{MAX_RUNS, MemoryMap};
use crate::memory::{
    GuestMemory,
    pages::{PAGE, page_count, with_pages},
};
use rustix::fs::{SeekFrom, seek};
use sandboxvm_protocol::vmm::MAX_MEMORY_FILES;
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, sync::Arc};

/// The last snapshot of a machine, or the one it was started from: what a new one is compared with. A machine that
/// booted begins with an empty one, memory being all zeros.
#[derive(Debug, Clone, Default)]
pub struct Baseline {
    /// Where its pages are.
    pub map: MemoryMap,
    /// Its memory files.
    pub files: Vec<Arc<File>>,
}

impl Baseline {
    /// Whether memory that was mapped from `origin`, or is its own from the beginning where there is none, reads as this
    /// wherever it was never written.
    #[must_use]
    pub fn is_beneath(&self, origin: Option<&Self>) -> bool {
        match origin {
            None => self.files.is_empty(),
            Some(origin) => {
                let same_files = self.files.len() == origin.files.len()
                    && self.files.iter().zip(&origin.files).all(|(ours, theirs)| Arc::ptr_eq(ours, theirs));
                same_files && self.map == origin.map
            }
        }
    }
}

/// Result of writing memory.
#[derive(Debug, PartialEq, Eq)]
pub struct WrittenMemory {
    /// Where each page is now; the new file's number is that of the baseline's files, or 0 when self-contained.
    pub map: MemoryMap,
    /// Bytes written.
    pub bytes: u64,
    /// True when the new file holds all.
    pub self_contained: bool,
}

/// Pages compared and copied at a time.
const CHUNK: usize = 64;

/// [`PAGE`] as a length in memory.
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE);

/// Writes the pages of `candidates` (see [`super::pagemap::written_pages`]) whose content differs from `baseline`, or
/// all of memory when `full` is set or the chain is at its limits.
///
/// # Errors
/// When a file cannot be read or written, as on a full disk.
pub fn write(
    memory: &GuestMemory,
    candidates: &[Range<u64>],
    baseline: &Baseline,
    file: &File,
    full: bool,
) -> io::Result<WrittenMemory> {
    let pages = page_count(memory);
    file.set_len(pages * PAGE)?;
    let number = u16::try_from(baseline.files.len()).unwrap_or(u16::MAX);
    if !full && !baseline.files.is_empty() && baseline.files.len() < MAX_MEMORY_FILES {
        let mut changed = ChangedPages::default();
        write_changed(memory, candidates, baseline, file, &mut changed)?;
        let map = baseline.map.overlaid(&changed.ranges, number);
        if map.runs().len() <= MAX_RUNS {
            return Ok(WrittenMemory { map, bytes: changed.bytes, self_contained: false });
        }
    }
    let mut bytes = copy_baseline(baseline, file)?;
    let mut changed = ChangedPages::default();
    write_changed(memory, candidates, baseline, file, &mut changed)?;
    bytes += changed.bytes;
    Ok(WrittenMemory { map: MemoryMap::whole(pages, 0), bytes, self_contained: true })
}

#[derive(Debug, Default)]
struct ChangedPages {
    ranges: Vec<Range<u64>>,
    bytes: u64,
}

impl ChangedPages {
    fn add(&mut self, pages: Range<u64>) {
        self.bytes += (pages.end - pages.start) * PAGE;
        match self.ranges.last_mut() {
            Some(last) if last.end == pages.start => last.end = pages.end,
            _ => self.ranges.push(pages),
        }
    }
}

fn write_changed(
    memory: &GuestMemory,
    candidates: &[Range<u64>],
    baseline: &Baseline,
    file: &File,
    changed: &mut ChangedPages,
) -> io::Result<()> {
    let mut before = vec![0; CHUNK * PAGE_LEN];
    for range in candidates {
        let results = with_pages(memory, range.clone(), |first, bytes| {
            for (first, chunk) in (first..).step_by(CHUNK).zip(bytes.chunks(CHUNK * PAGE_LEN)) {
                write_chunk(first, chunk, &mut before[..chunk.len()], baseline, file, changed)?;
            }
            Ok(())
        });
        results.into_iter().collect::<io::Result<()>>()?;
    }
    Ok(())
}

/// Writes the pages of `now` that are not as the baseline has them, neighbours in one call. A page that became zero is
/// written too: the file below it has something else.
fn write_chunk(
    first: u64,
    now: &[u8],
    before: &mut [u8],
    baseline: &Baseline,
    file: &File,
    changed: &mut ChangedPages,
) -> io::Result<()> {
    read_baseline(first, before, baseline)?;
    let differs: Vec<bool> = now.chunks(PAGE_LEN).zip(before.chunks(PAGE_LEN)).map(|(now, old)| now != old).collect();
    let mut at = 0;
    while at < differs.len() {
        if !differs[at] {
            at += 1;
            continue;
        }
        let end = differs[at..].iter().position(|d| !d).map_or(differs.len(), |n| at + n);
        let pages = first + at as u64..first + end as u64;
        file.write_all_at(&now[at * PAGE_LEN..end * PAGE_LEN], pages.start * PAGE)?;
        changed.add(pages);
        at = end;
    }
    Ok(())
}

/// Fills `into` with the baseline's pages from `first` on.
fn read_baseline(first: u64, into: &mut [u8], baseline: &Baseline) -> io::Result<()> {
    let count = into.len() / PAGE_LEN;
    let mut at = 0;
    while at < count {
        let source = baseline.map.file_of(first + at as u64);
        let same = (at..count).take_while(|i| baseline.map.file_of(first + *i as u64) == source).count();
        let bytes = &mut into[at * PAGE_LEN..(at + same) * PAGE_LEN];
        match source.and_then(|number| baseline.files.get(usize::from(number))) {
            Some(file) => file.read_exact_at(bytes, (first + at as u64) * PAGE)?,
            None => bytes.fill(0),
        }
        at += same;
    }
    Ok(())
}

/// Copies what the baseline's files hold (not their holes) into `file`.
fn copy_baseline(baseline: &Baseline, file: &File) -> io::Result<u64> {
    let mut copied = 0;
    let mut buffer = vec![0; CHUNK * PAGE_LEN];
    for run in baseline.map.runs() {
        let Some(source) = baseline.files.get(usize::from(run.file)) else { continue };
        let end = (run.first + run.count) * PAGE;
        let mut at = run.first * PAGE;
        while at < end {
            let data = match seek(&**source, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                Err(rustix::io::Errno::NXIO) => end,
                Err(error) => return Err(error.into()),
            };
            let hole = if data < end { seek(&**source, SeekFrom::Hole(data))?.min(end) } else { end };
            let mut offset = data / PAGE * PAGE;
            while offset < hole {
                let len = usize::try_from(hole - offset).unwrap_or(usize::MAX).min(buffer.len());
                source.read_exact_at(&mut buffer[..len], offset)?;
                copied += copy_pages(&buffer[..len], file, offset)?;
                offset += len as u64;
            }
            at = hole.max(at + PAGE);
        }
    }
    Ok(copied)
}

/// Writes the pages of `bytes` that are not zero. Others may be what became of a hole: where a file in memory (tmpfs) is
/// mapped, reading a hole fills it.
fn copy_pages(bytes: &[u8], file: &File, offset: u64) -> io::Result<u64> {
    let mut copied = 0;
    for (at, page) in (offset..).step_by(PAGE_LEN).zip(bytes.chunks(PAGE_LEN)) {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, at)?;
            copied += page.len() as u64;
        }
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 64 * 4096), (GuestAddress(1 << 32), 32 * 4096)]).unwrap()
    }

    fn fill(memory: &GuestMemory, page: u64, byte: u8) {
        let address = if page < 64 { page * PAGE } else { (1 << 32) + (page - 64) * PAGE };
        memory.write_slice(&[byte; 4096], GuestAddress(address)).unwrap();
    }

    fn page_of(map: &MemoryMap, files: &[Arc<File>], page: u64) -> u8 {
        let mut byte = [0];
        if let Some(file) = map.file_of(page) {
            files[usize::from(file)].read_exact_at(&mut byte, page * PAGE).unwrap();
        }
        byte[0]
    }

    #[test]
    fn a_chain_of_differences_holds_every_page_and_only_differences() {
        let memory = memory();
        let all: Vec<Range<u64>> = std::iter::once(0..96).collect();
        let mut baseline = Baseline::default();
        let mut expected = [0u8; 96];
        for round in 0..20u8 {
            for i in 0..5u64 {
                let page = (u64::from(round) * 31 + i * 17) % 96;
                expected[usize::try_from(page).unwrap()] = round + 1;
                fill(&memory, page, round + 1);
            }
            let file = tempfile::tempfile().unwrap();
            let written = write(&memory, &all, &baseline, &file, false).unwrap();
            if written.self_contained {
                baseline.files.clear();
            } else {
                assert_eq!(written.bytes, 5 * PAGE);
            }
            baseline.files.push(Arc::new(file));
            baseline.map = written.map;
            for (page, byte) in (0u64..).zip(&expected) {
                assert_eq!(page_of(&baseline.map, &baseline.files, page), *byte, "round {round}, page {page}");
            }
        }
        assert!(baseline.files.len() <= MAX_MEMORY_FILES);
    }

    #[test]
    fn mapping_gives_memory_back_and_keeps_files_untouched() {
        let memory = memory();
        fill(&memory, 3, 7);
        fill(&memory, 70, 9);
        let file = tempfile::tempfile().unwrap();
        let written = write(&memory, std::slice::from_ref(&(0..96)), &Baseline::default(), &file, true).unwrap();
        assert!(written.self_contained);
        assert_eq!(written.bytes, 2 * PAGE);
        let restored = self::memory();
        let files = [Arc::new(file)];
        written.map.map_over(&restored, &files).unwrap();
        assert_eq!(restored.read_obj::<u8>(GuestAddress(3 * PAGE)).unwrap(), 7);
        assert_eq!(restored.read_obj::<u8>(GuestAddress((1 << 32) + 6 * PAGE)).unwrap(), 9);
        fill(&restored, 3, 1);
        assert_eq!(page_of(&written.map, &files, 3), 7);
    }
}
