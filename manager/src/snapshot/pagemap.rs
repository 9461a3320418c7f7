//! Opens the page map of a VMM, which the VMM receives for a snapshot and may keep. The map shows
//! which pages were written. It may not show where in the host's memory they are: the kernel
//! decides this by the privileges of the process that opened the file.

use crate::{
    home::directory::{DirectoryError, SandboxDirectory},
    snapshot::lineage::live_vmm,
    vmm::lock,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::{fs::File, io, thread};

/// Opens the page map of the sandbox's VMM by its PID. The PID is only trusted if its process holds
/// the lock.
pub(super) fn of_vmm(directory: &SandboxDirectory) -> Result<Option<File>, DirectoryError> {
    let Some(pid) = live_vmm(directory)? else { return Ok(None) };
    let path = format!("/proc/{pid}/pagemap");
    let file = open(&path).map_err(|error| DirectoryError::new("open", &path, error))?;
    // The process still holds the lock, so it held the lock when the file was opened.
    Ok(lock::is_holder(directory, pid).then_some(file))
}

/// Opens the file on a thread without the privilege to see frame numbers, if this process has it.
/// Each thread has its own privileges.
fn open(path: &str) -> io::Result<File> {
    if !capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN) {
        return File::open(path);
    }
    thread::scope(|scope| {
        let opened = scope.spawn(|| {
            let mut sets = capabilities(None)?;
            sets.effective.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, sets)?;
            File::open(path)
        });
        opened.join().unwrap_or_else(|_| Err(io::Error::other("the thread that opens it panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// Bits 0 to 54 of an entry, see Documentation/admin-guide/mm/pagemap.rst.
    const FRAME: u64 = (1 << 55) - 1;
    const PRESENT: u64 = 1 << 63;

    fn entry_of(map: &File, address: *const u8) -> u64 {
        let mut entry = [0; 8];
        let page = address as u64 / rustix::param::page_size() as u64;
        map.read_exact_at(&mut entry, page * 8).unwrap();
        u64::from_ne_bytes(entry)
    }

    #[test]
    fn page_map_shows_no_frame_numbers() {
        let page = vec![1_u8; 3 * rustix::param::page_size()];
        let within = &raw const page[rustix::param::page_size()];
        if rustix::process::getuid().is_root() {
            let all = File::open("/proc/self/pagemap").unwrap();
            assert_ne!(entry_of(&all, within) & FRAME, 0, "root sees them, so this test shows something");
        }
        let entry = entry_of(&open("/proc/self/pagemap").unwrap(), within);
        assert_eq!((entry & PRESENT, entry & FRAME), (PRESENT, 0));
        let here = capabilities(None).unwrap();
        assert_eq!(
            here.effective.contains(CapabilitySet::SYS_ADMIN),
            here.permitted.contains(CapabilitySet::SYS_ADMIN),
            "this thread keeps what it had"
        );
    }
}
