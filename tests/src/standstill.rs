//! Making a machine that stands look as if it had stopped long ago, instead of waiting for that: its page for the VMM
//! (images/kernel/README.md, "The mailbox") says when it stopped. Both the host's TSC and its wall clock are taken back by
//! as much, and what the guest's kernel adds to the TSC is raised by it, so that its clocks stay where they stood.

use std::{
    fs::{self, File, FileTimes, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

/// Where the page is in guest memory.
const PAGE: u64 = 0x3_1000;
const MAGIC: &[u8; 4] = b"SVM1";
/// Where in it are: the address of what is added to the TSC, and TSC and wall clock of the stop.
const TSC_OFFSET: u64 = PAGE + 8;
const STOP_TSC: u64 = PAGE + 24;
const STOP_WALL: u64 = PAGE + 32;

/// Ages the memory of a standing machine by `age`: of the VMM `pid`, whose vCPUs do not run.
///
/// # Panics
/// When there is no such machine, or its kernel has no such page.
pub fn age_paused(pid: u32, age: Duration) {
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("its memory");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let mut magic = [0; 4];
    let base = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"));
        (rest.starts_with("rw-p") || rest.starts_with("rw-s")).then_some(())?;
        // The page is in the machine's first mapping, or in one that begins with it.
        (start..end).step_by(0x1000).take(1 + PAGE as usize / 0x1000).find_map(|page| {
            memory.read_exact_at(&mut magic, page).ok()?;
            (&magic == MAGIC).then(|| page - PAGE)
        })
    });
    age_at(&memory, base.expect("no mapping has the page"), age);
}

/// Ages a snapshot by `age`, given its newest memory file.
///
/// # Panics
/// When its kernel has no such page, or the page is in an older file.
pub fn age_snapshot(memory: &Path, age: Duration) {
    let file = OpenOptions::new().read(true).write(true).open(memory).expect("the memory file");
    let modified = file.metadata().and_then(|data| data.modified()).expect("a time");
    age_at(&file, 0, age);
    // Whoever restores it takes it for untouched.
    file.set_times(FileTimes::new().set_modified(modified)).expect("the time is set back");
}

fn age_at(memory: &File, base: u64, age: Duration) {
    let mut magic = [0; 4];
    memory.read_exact_at(&mut magic, base + PAGE).expect("the page");
    assert_eq!(&magic, MAGIC);
    let read = |address: u64| {
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, base + address).expect("a word of guest memory");
        u64::from_le_bytes(word)
    };
    let add = |address: u64, value: u64| {
        let word = read(address).wrapping_add(value).to_le_bytes();
        memory.write_all_at(&word, base + address).expect("a word of guest memory");
    };
    // By any TSC: all that counts is that both agree.
    let ticks = age.as_secs() * 2_000_000_000;
    assert!(read(STOP_TSC) != 0 && read(STOP_WALL) != 0, "the machine never stopped");
    add(read(TSC_OFFSET), ticks);
    add(STOP_TSC, ticks.wrapping_neg());
    add(STOP_WALL, u64::try_from(age.as_nanos()).expect("less than 500 years").wrapping_neg());
}
