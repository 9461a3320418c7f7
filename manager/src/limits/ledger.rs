//! Who was admitted to a home: its file `admitted`, a line for each sandbox, read and written under its lock. Two who are
//! admitted at the same time each count the other. Nobody takes a line out when a sandbox goes: those that are no more are
//! looked for when their lines are in somebody's way. Called by `admission`, which decides.

use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
    },
    vmm::lock,
};
use rustix::fs::{FlockOperation, flock};
use sandboxvm_protocol::ids::SandboxId;
use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
};

/// A sandbox that was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    /// Its memory; none once it does not run.
    pub(crate) mib: u64,
}

/// The file, locked.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    pub(crate) entries: Vec<Entry>,
}

impl Ledger {
    /// Waits for whoever has it.
    pub(crate) fn open(home: &Home) -> Result<Self, DirectoryError> {
        let path = home.admitted();
        let fail = |what| {
            let path = path.clone();
            move |error: io::Error| DirectoryError::new(what, path, error)
        };
        let options = OpenOptions::new().read(true).write(true).create(true).mode(0o600).truncate(false).open(&path);
        let mut file = options.map_err(fail("open"))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| fail("lock")(error.into()))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(fail("read"))?;
        Ok(Self { file, entries: parse_entries(&text) })
    }

    /// Leaves out those that are no more, and counts no memory for those that do not run.
    pub(crate) fn forget_the_gone(&mut self, home: &Home) {
        self.entries.retain(|entry| home.staged(&entry.id).exists() || home.sandbox(&entry.id).exists());
        for entry in &mut self.entries {
            let directory = SandboxDirectory::open(home.sandbox(&entry.id));
            if directory.is_ok_and(|directory| matches!(lock::try_exclude_vmm(&directory), Ok(Some(_)))) {
                entry.mib = 0;
            }
        }
    }

    /// A line that a kill -9 cuts is one sandbox not counted.
    pub(crate) fn write(mut self, home: &Home) -> Result<(), DirectoryError> {
        let text = self.entries.iter().fold(String::new(), |mut text, entry| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{} {}", entry.id, entry.mib);
            text
        });
        let written = self
            .file
            .rewind()
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.set_len(text.len() as u64));
        written.map_err(|error| DirectoryError::new("write", home.admitted(), error))
    }
}

/// What is no entry is left out.
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
    fn one_that_does_not_run_counts_as_a_sandbox_and_not_for_its_memory() {
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
