//! Makes a machine that does not run look as if it had stopped long ago, so that a test need not
//! wait. Its mailbox (images/kernel/README.md, "The mailbox") says when it stopped. This module
//! moves the host's TSC and wall clock of the stop back by the same time. It also raises the guest
//! kernel's offset to the TSC by that time, so that the guest's clocks keep their values.

use std::{
    fs::{self, File, FileTimes, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

/// Address of the mailbox in guest memory.
const PAGE: u64 = 0x3_1000;
const MAGIC: &[u8; 4] = b"SVM1";
/// Addresses in the mailbox: the address of the offset to the TSC, and the TSC and the wall clock
/// of the stop.
const TSC_OFFSET: u64 = PAGE + 8;
const STOP_TSC: u64 = PAGE + 24;
const STOP_WALL: u64 = PAGE + 32;

/// Ages the memory of the machine of the VMM `pid` by `age`. The machine must be stopped.
///
/// # Panics
/// Panics if there is no such machine, or if its kernel has no mailbox.
pub fn age_paused(pid: u32, age: Duration) {
    let memory =
        OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("the memory can be opened");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the mappings can be read");
    let mut magic = [0; 4];
    let base = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"));
        (rest.starts_with("rw-p") || rest.starts_with("rw-s")).then_some(())?;
        // The mailbox is in the machine's first mapping, or in one that begins with it.
        (start..end).step_by(0x1000).take(1 + PAGE as usize / 0x1000).find_map(|page| {
            memory.read_exact_at(&mut magic, page).ok()?;
            (&magic == MAGIC).then(|| page - PAGE)
        })
    });
    age_at(&memory, base.expect("a mapping has the mailbox"), age);
}

/// Ages a snapshot by `age`, given its newest memory file.
///
/// # Panics
/// Panics if its kernel has no mailbox, or if the mailbox is in an older memory file.
pub fn age_snapshot(memory: &Path, age: Duration) {
    let file = OpenOptions::new().read(true).write(true).open(memory).expect("the memory file");
    let modified = file.metadata().and_then(|data| data.modified()).expect("a time");
    age_at(&file, 0, age);
    // The file keeps its time, so a restore considers it unchanged.
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
    // Any frequency of the TSC will do, as stop and offset change by the same number.
    let ticks = age.as_secs() * 2_000_000_000;
    assert!(read(STOP_TSC) != 0 && read(STOP_WALL) != 0, "the machine never stopped");
    add(read(TSC_OFFSET), ticks);
    add(STOP_TSC, ticks.wrapping_neg());
    add(STOP_WALL, u64::try_from(age.as_nanos()).expect("less than 500 years").wrapping_neg());
}
