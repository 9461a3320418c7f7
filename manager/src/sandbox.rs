//! One sandbox, as a caller holds it: its record, its state, and its VMM.
//!
//! Requests to its guest are in `guest`, and changes of the sandbox in `snapshot` and `lifecycle`:
//! each of those modules adds its methods to [`Sandbox`].

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
    /// The serial console of the guest, with output of its kernel and the agent. Hostile bytes.
    Console,
    /// The messages of the VMM.
    Vmm,
}

/// A sandbox that exists, or did when it was opened.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) home: Home,
    pub(crate) directory: SandboxDirectory,
    pub(crate) record: SandboxRecord,
}

impl Sandbox {
    /// Returns the ID of the sandbox.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.record.id
    }

    /// Returns the digest of the container image from which it was started, if that was one.
    #[must_use]
    pub fn image_digest(&self) -> Option<&str> {
        self.record.image_defaults.as_ref().map(|image| image.digest.as_str())
    }

    pub(crate) fn label(&self) -> String {
        self.record.name.as_ref().map_or_else(|| self.record.id.to_string(), ToString::to_string)
    }

    /// Returns the configuration with which the sandbox was created.
    #[must_use]
    pub fn record(&self) -> &SandboxRecord {
        &self.record
    }

    /// Returns the path of its directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Returns the current state.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn state(&self) -> Result<State, DirectoryError> {
        state::read(&self.directory)
    }

    /// Returns the last report of the VMM about itself, which may be outdated.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn vmm_status(&self) -> Result<Option<VmStatus>, DirectoryError> {
        state::status(&self.directory)
    }

    /// Returns which limits are not in force and why, one sentence for each.
    #[must_use]
    pub fn unkept_limits(&self) -> Vec<String> {
        kept::unkept(&self.directory)
    }

    /// Returns at most the last `cap` bytes of a log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self, log: Log, cap: u64) -> Result<Vec<u8>, DirectoryError> {
        let name = match log {
            Log::Console => CONSOLE_LOG,
            Log::Vmm => VMM_LOG,
        };
        self.directory.read_tail(name, cap)
    }

    /// Returns the counters of the VMM.
    ///
    /// # Errors
    /// When there is no VMM or it does not answer.
    pub async fn stats(&self) -> Result<VmStats, ControlError> {
        self.control().await?.stats().await
    }

    /// Returns when the machine went through the steps of its start.
    ///
    /// # Errors
    /// When there is no VMM or it does not answer.
    pub async fn timeline(&self) -> Result<Timeline, ControlError> {
        self.control().await?.timeline().await
    }

    pub(crate) async fn control(&self) -> Result<ControlClient, ControlError> {
        match (ControlClient::connect(&self.directory).await, self.state()) {
            // No process listens if no VMM runs.
            (Err(_), Ok(state)) if !state.is_live() => Err(ControlError::NotRunning { sandbox: self.label(), state }),
            (connected, _) => Ok(connected?.called(self.label())),
        }
    }

    /// Ends the VMM now, with everything that it started: by request, or by SIGKILL if that takes
    /// more than a second. Does nothing if all of it has ended. Returns when all of it has been
    /// released.
    ///
    /// # Errors
    /// Every [`EndError`].
    pub async fn kill(&self) -> Result<(), EndError> {
        self.end().await.map(drop)
    }

    /// Like [`Self::kill`]. Returns false if there was nothing to end.
    pub(crate) async fn end(&self) -> Result<bool, EndError> {
        end::now(&self.home, &self.directory, self.id()).await
    }
}
