//! One sandbox of this server while it is known: its record, who changes it, and what the sandbox plane remembers of it.

use super::{
    gate::{Gate, Pass},
    record::Record,
    samples::{KEPT, Sample},
};
use crate::sandbox_plane::envd::SandboxState;
use sandboxvm_manager::Sandbox;
use sandboxvm_protocol::ids::SandboxId;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    record: Mutex<Record>,
    samples: Mutex<VecDeque<Sample>>,
    end_counted: AtomicBool,
    /// Held by every call that changes the sandbox or its record, to its end.
    pub(super) change: tokio::sync::Mutex<()>,
    /// Where requests to the sandbox wait for a change to end.
    pub(super) gate: Gate,
    /// It was removed, with its record. Set under `change`, and final.
    gone: AtomicBool,
    /// What envd's clients are told of its processes and directories; gone with the server.
    pub(crate) envd: SandboxState,
}

/// A sandbox that runs, and what is known of it.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) entry: Arc<Entry>,
    pub(crate) sandbox: Sandbox,
    pass: Mutex<Option<Pass>>,
}

impl Reached {
    pub(super) fn new(entry: Arc<Entry>, sandbox: Sandbox, pass: Pass) -> Self {
        Self { entry, sandbox, pass: Mutex::new(Some(pass)) }
    }

    /// What the request asked for has begun: a pause need not wait for it any longer.
    pub(crate) fn has_begun(&self) {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Entry {
    pub(super) fn new(record: Record) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            record: Mutex::new(record),
            samples: Mutex::default(),
            end_counted: AtomicBool::new(false),
            change: tokio::sync::Mutex::default(),
            gate: Gate::default(),
            gone: AtomicBool::new(false),
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

    /// Which of its tokens open it.
    pub(crate) fn token_generation(&self) -> u32 {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).token_generation
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// What it took lately, oldest first.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// True the first time.
    pub(super) fn counts_its_end(&self) -> bool {
        !self.end_counted.swap(true, Ordering::Relaxed)
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
