//! One sandbox of this server while it is known: its record, who changes it, and what the sandbox plane remembers of it.

use super::{
    record::Record,
    samples::{KEPT, Sample},
};
use crate::sandbox_plane::envd::SandboxState;
use sandboxvm_manager::Sandbox;
use sandboxvm_protocol::identity::SandboxId;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    record: Mutex<Record>,
    samples: Mutex<VecDeque<Sample>>,
    /// Held by whoever pauses, resumes, snapshots, forks or ends it.
    pub(super) change: tokio::sync::Mutex<()>,
    /// What envd's clients are told of its processes and directories; gone with the server.
    pub(crate) envd: SandboxState,
}

/// A sandbox that runs, and what is known of it.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) entry: Arc<Entry>,
    pub(crate) sandbox: Sandbox,
}

impl Entry {
    pub(super) fn new(record: Record) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            record: Mutex::new(record),
            samples: Mutex::default(),
            change: tokio::sync::Mutex::default(),
            envd: SandboxState::default(),
        })
    }

    /// What is known of it now.
    pub(crate) fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its commands and files want its token.
    pub(crate) fn is_secure(&self) -> bool {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).secure
    }

    /// What it took lately, oldest first.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    pub(super) fn add_sample(&self, sample: Sample) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub(super) fn set_record(&self, record: Record) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
    }
}
