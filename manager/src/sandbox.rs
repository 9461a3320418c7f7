//! One sandbox, as a caller holds it: its record, its state, and its VMM.
//!
//! What can be asked of the guest behind it is in `guest`, what changes it in `snapshot` and `lifecycle`: each of those
//! modules adds its methods to [`Sandbox`].

use crate::{
    home::{
        directory::{CONSOLE_LOG, DirectoryError, SandboxDirectory, VMM_LOG},
        layout::Home,
    },
    limits::kept,
    record::SandboxRecord,
    vmm::{
        control::{ControlClient, ControlError},
        end::{self, EndError},
        state::{self, State},
    },
};
use sandboxvm_protocol::{
    ids::SandboxId,
    vmm::{Timeline, VmStats, VmStatus},
};
use std::path::PathBuf;

/// A log of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The guest's serial console: kernel and agent. Hostile bytes.
    Console,
    /// The VMM's own messages.
    Vmm,
}

/// One sandbox.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) home: Home,
    pub(crate) directory: SandboxDirectory,
    pub(crate) record: SandboxRecord,
}

impl Sandbox {
    /// Its ID.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.record.id
    }

    pub(crate) fn label(&self) -> String {
        self.record.name.as_ref().map_or_else(|| self.record.id.to_string(), ToString::to_string)
    }

    /// What it was made as.
    #[must_use]
    pub fn record(&self) -> &SandboxRecord {
        &self.record
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// What it does now.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn state(&self) -> Result<State, DirectoryError> {
        state::read(&self.directory)
    }

    /// What its VMM last said of itself, true or not any more.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn vmm_status(&self) -> Result<Option<VmStatus>, DirectoryError> {
        state::status(&self.directory)
    }

    /// Which of its limits are not in force, and why; one sentence each.
    #[must_use]
    pub fn unkept_limits(&self) -> Vec<String> {
        kept::unkept(&self.directory)
    }

    /// At most the last `cap` bytes of a log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self, log: Log, cap: u64) -> Result<Vec<u8>, DirectoryError> {
        let name = match log {
            Log::Console => CONSOLE_LOG,
            Log::Vmm => VMM_LOG,
        };
        self.directory.read_tail(name, cap)
    }

    /// Counters of its VMM.
    ///
    /// # Errors
    /// When there is no VMM or it does not answer.
    pub async fn stats(&self) -> Result<VmStats, ControlError> {
        self.control().await?.stats().await
    }

    /// When its machine came to life.
    ///
    /// # Errors
    /// When there is no VMM or it does not answer.
    pub async fn timeline(&self) -> Result<Timeline, ControlError> {
        self.control().await?.timeline().await
    }

    pub(crate) async fn control(&self) -> Result<ControlClient, ControlError> {
        match (ControlClient::connect(&self.directory).await, self.state()) {
            // Nobody listens where nothing runs.
            (Err(_), Ok(state)) if !state.is_live() => Err(ControlError::NotRunning { sandbox: self.label(), state }),
            (connected, _) => Ok(connected?.called(self.label())),
        }
    }

    /// Ends its VMM now, with everything that it started: by request, and by SIGKILL when that takes more than a second.
    /// Nothing happens when all of it is gone. Returns when it has let go of everything.
    ///
    /// # Errors
    /// Every [`EndError`].
    pub async fn kill(&self) -> Result<(), EndError> {
        self.end().await.map(drop)
    }

    /// As [`Self::kill`]; false when there was nothing to end.
    pub(crate) async fn end(&self) -> Result<bool, EndError> {
        end::now(&self.home, &self.directory, self.id()).await
    }
}
