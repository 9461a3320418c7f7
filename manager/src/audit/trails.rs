//! The audit logs of a home: finds, lists and prunes them. May not remove the log of a sandbox that
//! exists.

use crate::{
    audit::{
        Event,
        log::{AuditError, EXTENSION, HEAD, Trail},
    },
    home::directory::DirectoryError,
    manager::Manager,
    sandbox::Sandbox,
};
use sandboxvm_protocol::{identity::SandboxId, machine::MemorySize};
use std::{collections::BTreeSet, ffi::OsStr, fmt::Display, fs, path::PathBuf, time::Duration};

impl Manager {
    /// Returns the audit log of a sandbox that exists or existed.
    #[must_use]
    pub fn trail(&self, sandbox: &SandboxId) -> Trail {
        Trail::of(&self.home, sandbox)
    }

    /// Returns all audit logs by ID, including those of removed sandboxes.
    ///
    /// # Errors
    /// When the home cannot be read.
    pub fn trails(&self) -> Result<Vec<Trail>, AuditError> {
        let path = self.home.audit();
        let list = |source| AuditError::Io { what: "list", path: path.clone(), source };
        let mut sandboxes = BTreeSet::new();
        for entry in fs::read_dir(&path).map_err(list)? {
            let name = PathBuf::from(entry.map_err(list)?.file_name());
            // If a log was removed, its head may be left.
            if name.extension().is_some_and(|extension| extension == EXTENSION || extension == HEAD)
                && let Some(stem) = name.file_stem().and_then(OsStr::to_str)
                && let Ok(id) = SandboxId::try_from(stem.to_owned())
            {
                sandboxes.insert(id);
            }
        }
        Ok(sandboxes.iter().map(|id| Trail::of(&self.home, id)).collect())
    }

    /// Removes the logs of removed sandboxes that were not written to for `kept_for`. Returns their
    /// number.
    ///
    /// # Errors
    /// When the home cannot be read, or a log cannot be removed.
    pub fn prune_audit(&self, kept_for: Duration) -> Result<usize, AuditError> {
        self.prune_trails(kept_for, false)
    }

    /// Like [`Self::prune_audit`]. With `only_say`, only counts the logs.
    pub(crate) fn prune_trails(&self, kept_for: Duration, only_say: bool) -> Result<usize, AuditError> {
        let mut pruned = 0;
        for trail in self.trails()? {
            let is_old = trail.age().is_some_and(|age| age > kept_for);
            if is_old && !self.home.sandbox(trail.sandbox()).exists() {
                if !only_say {
                    trail.remove().map_err(trail.fail("remove"))?;
                }
                pruned += 1;
            }
        }
        Ok(pruned)
    }
}

impl Trail {
    /// Logs that the host did not admit the sandbox.
    pub(crate) fn note_refusal(&self, memory: MemorySize, disk_bytes: u64, why: &impl Display) {
        self.note(Event::NotAdmitted { memory_bytes: memory, disk_bytes, reason: why.to_string() });
    }
}

impl Sandbox {
    /// Returns the audit log of the sandbox.
    #[must_use]
    pub fn trail(&self) -> Trail {
        Trail::of(&self.home, &self.record.id)
    }

    /// Logs how the machine ended, if it did, before another machine replaces it.
    pub(crate) fn note_end(&self) -> Result<(), DirectoryError> {
        if let Some(reason) = self.state()?.end() {
            self.trail().note(Event::MachineEnded { reason });
        }
        Ok(())
    }
}
