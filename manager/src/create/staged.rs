//! A sandbox that is being created: its directory stays in `staging/`, where no other process
//! looks, until it is complete and moved to `sandboxes/`.

use crate::{
    audit::Trail,
    discard,
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
        names::{self, NameError},
        private,
        staging::new_staged,
    },
    limits::admission::{self, AdmissionError},
    record::SandboxRecord,
    sandbox::Sandbox,
};
use sandboxvm_protocol::identity::SandboxName;
use std::time::SystemTime;

/// A sandbox that no other process can see yet. Dropping it removes everything again.
#[derive(Debug)]
pub(crate) struct Staged {
    home: Home,
    directory: Option<SandboxDirectory>,
    record: SandboxRecord,
}

impl Staged {
    /// Creates the directory and claims the name.
    pub(crate) fn begin(home: &Home, record: SandboxRecord) -> Result<Self, NameError> {
        let directory = new_staged(home, &record.id)?;
        let staged = Self { home: home.clone(), directory: Some(directory), record };
        if let Some(name) = &staged.record.name {
            names::claim(home, name, &staged.record.id)?;
        }
        Ok(staged)
    }

    pub(crate) fn directory(&self) -> &SandboxDirectory {
        self.directory.as_ref().expect("taken only by methods that consume self")
    }

    /// Reserves room on the host, see [`crate::limits::admission`]. The caller has to drop a
    /// sandbox that is rejected.
    pub(crate) fn admit(&self) -> Result<(), AdmissionError> {
        let SandboxRecord { id, memory_bytes, disk_bytes, .. } = &self.record;
        let admitted = admission::admit(&self.home, id, *memory_bytes, *disk_bytes);
        admitted.inspect_err(|error| Trail::of(&self.home, id).note_refusal(*memory_bytes, *disk_bytes, error))
    }

    pub(crate) fn record(&self) -> &SandboxRecord {
        &self.record
    }

    /// Sets name, variables and `ephemeral`, and claims the name. The ID stays.
    pub(crate) fn become_wanted(
        &mut self,
        name: Option<SandboxName>,
        env: Vec<String>,
        ephemeral: bool,
    ) -> Result<(), NameError> {
        if let Some(name) = &name {
            names::claim(&self.home, name, &self.record.id)?;
        }
        self.record = SandboxRecord { name, env, ephemeral, created_at: SystemTime::now(), ..self.record.clone() };
        Ok(())
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Moves the directory to `sandboxes/`, where others can find it.
    pub(crate) fn publish(mut self) -> Result<Sandbox, DirectoryError> {
        if self.record.ephemeral {
            let mark = self.home.ephemeral_mark(&self.record.id);
            private::create(&mark).map_err(|e| DirectoryError::new("create", mark, e))?;
        }
        let path = self.home.sandbox(&self.record.id);
        self.directory.as_mut().expect("taken only by methods that consume self").rename_to(path)?;
        Ok(self.into_sandbox())
    }

    /// Lets the machine run in staging, where others cannot find it. Only for a VMM that ends with
    /// this process.
    pub(crate) fn keep_hidden(self) -> Sandbox {
        self.into_sandbox()
    }

    fn into_sandbox(mut self) -> Sandbox {
        let directory = self.directory.take().expect("taken only by methods that consume self");
        Sandbox { home: self.home.clone(), directory, record: self.record.clone() }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            // The caller has a better error to report; a sweep removes what stays.
            let _ = discard::discard(&self.home, directory, &self.record.id, self.record.name.as_ref());
        }
    }
}
