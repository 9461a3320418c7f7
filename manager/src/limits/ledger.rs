//! The ledger of a home: its file `admitted` with a line for each admitted sandbox, read and
//! written under its lock, so that two sandboxes that are admitted at the same time count each
//! other. A line is not removed together with its sandbox: sandboxes that do not exist any more are
//! looked for when their lines would cause a rejection. `admission`, which makes the decision,
//! calls this module.

use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        flock::Sharing,
        layout::Home,
        locks::{FileLock, LockClass},
    },
    vmm::lock,
};
use sandboxvm_protocol::identity::SandboxId;
use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
};

/// A sandbox that was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    /// Its memory in MiB. 0 once it is known not to run.
    pub(crate) mib: u64,
}

/// The locked file.
#[derive(Debug)]
pub(crate) struct Ledger {
    lock: FileLock,
    pub(crate) entries: Vec<Entry>,
}

impl Ledger {
    /// Opens the file, and waits for its lock.
    pub(crate) fn open(home: &Home) -> Result<Self, DirectoryError> {
        let path = home.admitted();
        let fail = |what| {
            let path = path.clone();
            move |error: io::Error| DirectoryError::new(what, path, error)
        };
        let options = OpenOptions::new().read(true).write(true).create(true).mode(0o600).truncate(false).open(&path);
        let file = options.map_err(fail("open"))?;
        let lock = FileLock::wait(LockClass::Ledger, Sharing::Exclusive, file).map_err(fail("lock"))?;
        let mut text = String::new();
        lock.file().read_to_string(&mut text).map_err(fail("read"))?;
        Ok(Self { lock, entries: parse_entries(&text) })
    }

    /// Removes sandboxes that do not exist any more, and sets the memory of those that do not run
    /// to 0.
    pub(crate) fn forget_the_gone(&mut self, home: &Home) {
        self.entries.retain(|entry| home.staged(&entry.id).exists() || home.sandbox(&entry.id).exists());
        for entry in &mut self.entries {
            let directory = SandboxDirectory::open(home.sandbox(&entry.id));
            if directory.is_ok_and(|directory| matches!(lock::try_exclude_vmm(&directory), Ok(Some(_)))) {
                entry.mib = 0;
            }
        }
    }

    /// Writes the entries. If a kill -9 cuts a line, one sandbox is not counted.
    pub(crate) fn write(self, home: &Home) -> Result<(), DirectoryError> {
        let text = self.entries.iter().fold(String::new(), |mut text, entry| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {}", entry.id, entry.mib);
            text
        });
        let mut file = self.lock.file();
        let written =
            file.rewind().and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.set_len(text.len() as u64));
        written.map_err(|error| DirectoryError::new("write", home.admitted(), error))
    }
}

/// Parses the entries. Ignores invalid lines.
fn parse_entries(text: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let (id, mib) = line.split_once(' ')?;
        Some(Entry { id: SandboxId::try_from(id.to_owned()).ok()?, mib: mib.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn stopped_sandboxes_count_without_their_memory() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let id = |number: usize| SandboxId::try_from(format!("sandbox{number:05}")).unwrap();
        let directory = SandboxDirectory::create(home.sandbox(&id(1))).unwrap();
        let lock = lock::create(&directory).unwrap();
        fs::write(home.admitted(), format!("{} 256\n{} 256\ngarbage\n{}", id(1), id(2), id(3))).unwrap();
        let mut ledger = Ledger::open(&home).unwrap();
        ledger.forget_the_gone(&home);
        assert_eq!(ledger.entries, [Entry { id: id(1), mib: 256 }]);
        drop(lock);
        ledger.forget_the_gone(&home);
        assert_eq!(ledger.entries, [Entry { id: id(1), mib: 0 }]);
    }
}
