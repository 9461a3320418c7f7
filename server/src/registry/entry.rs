//! One sandbox of this server while it is known: its record, its samples, and the locks of those that change it.

use super::{
    gate::{Gate, Pass},
    record::Record,
};
use crate::metering::{samples::Samples, traffic::Traffic};
use sandboxvm_manager::{Sandbox, SandboxId};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::Semaphore;

/// As many as wait for one guest.
const CALLS: usize = 2048;

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    record: Mutex<Record>,
    /// What it took of the machine lately.
    pub(crate) samples: Samples,
    /// What passed its network.
    pub(crate) traffic: Traffic,
    end_counted: AtomicBool,
    /// Calls about its guest at the same time, of all requests to it.
    pub(crate) calls: Arc<Semaphore>,
    /// Held by every call that changes the sandbox or its record, to its end.
    pub(super) change: tokio::sync::Mutex<()>,
    /// Where requests to the sandbox wait for a change to end.
    pub(super) gate: Gate,
    /// It was removed, with its record. Set under `change`, and final.
    gone: AtomicBool,
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
    pub(crate) fn new(record: Record) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            record: Mutex::new(record),
            samples: Samples::default(),
            traffic: Traffic::default(),
            end_counted: AtomicBool::new(false),
            calls: Arc::new(Semaphore::new(CALLS)),
            change: tokio::sync::Mutex::default(),
            gate: Gate::default(),
            gone: AtomicBool::new(false),
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

    /// True the first time.
    pub(super) fn counts_its_end(&self) -> bool {
        !self.end_counted.swap(true, Ordering::Relaxed)
    }

    pub(super) fn set_record(&self, record: Record) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
    }
}
