//! A pool of machines armed ahead: restored from a ready snapshot or one with a name, with everything behind them but their first
//! instruction. Handing one out costs a record, a rename and one message to its VMM. For processes that run long; the
//! pool is theirs alone and ends with them.
//!
//! An armed machine lives in staging, where nobody looks: it has an ID but no record and no name, and its VMM ends with
//! this process until it is handed out. A kill -9 leaves what a sweep takes away.
//!
//! ```text
//! empty place ── restore, start: no ──> armed ── take: record, publish, start, untie ──> a sandbox like any other
//! ```

use crate::{
    create::{
        armed::ArmedMachine,
        error::CreateError,
        spec::{SandboxSpec, StartFrom},
        started::StartedSandbox,
    },
    manager::Manager,
};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_protocol::ids::SandboxName;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, task::JoinHandle};

/// How long filling rests after a failure: whatever it is, it takes longer than this to go away.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// See the module. Dropping it ends the machines that were not handed out.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    filler: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    manager: Manager,
    bundle: Bundle,
    spec: SandboxSpec,
    size: usize,
    armed: Mutex<VecDeque<ArmedMachine>>,
    /// One was taken, or one was added.
    changed: Notify,
    last_failure: Mutex<Option<String>>,
}

/// What the next sandbox out of a pool is to be.
#[derive(Debug, Clone, Default)]
pub struct PoolRequest {
    /// Its name, when it gets one.
    pub name: Option<SandboxName>,
    /// `KEY=VALUE`, given to every process started in it.
    pub env: Vec<String>,
    /// As in [`SandboxSpec::ephemeral`].
    pub ephemeral: bool,
}

impl Pool {
    /// A pool of `size` machines of the kind that `spec` describes, which is filled from now on and again after each
    /// [`Self::take`]. The spec's name, environment and `ephemeral` are those of each request instead. Must be called
    /// within a tokio runtime.
    #[must_use]
    pub fn new(manager: Manager, bundle: Bundle, spec: SandboxSpec, size: usize) -> Self {
        let start_from = match spec.start_from {
            StartFrom::Boot => StartFrom::Ready,
            start_from => start_from,
        };
        let spec = SandboxSpec { name: None, env: Vec::new(), ephemeral: false, start_from, ..spec };
        let shared = Arc::new(Shared {
            manager,
            bundle,
            spec,
            size,
            armed: Mutex::default(),
            changed: Notify::new(),
            last_failure: Mutex::default(),
        });
        let filler = tokio::spawn(fill(Arc::clone(&shared)));
        Self { shared, filler }
    }

    /// Machines that wait to be handed out.
    #[must_use]
    pub fn armed(&self) -> usize {
        self.shared.armed().len()
    }

    /// Why the pool could not be filled, when the last attempt failed.
    #[must_use]
    pub fn last_failure(&self) -> Option<String> {
        self.shared.last_failure().clone()
    }

    /// Waits until the pool is full. Cancel safe.
    ///
    /// # Errors
    /// What filling it failed with.
    pub async fn filled(&self) -> Result<(), String> {
        loop {
            let changed = self.shared.changed.notified();
            if self.armed() >= self.shared.size {
                return Ok(());
            }
            if let Some(failure) = self.last_failure() {
                return Err(failure);
            }
            changed.await;
        }
    }

    /// The next sandbox: an armed machine, which runs when this returns, or one made now where there is none. No machine
    /// is ever handed out twice. As [`Manager::start`], this does not wait for the agent.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn take(&self, request: &PoolRequest) -> Result<StartedSandbox, CreateError> {
        let Shared { manager, bundle, spec, .. } = &*self.shared;
        let spec = SandboxSpec {
            name: request.name.clone(),
            env: request.env.clone(),
            ephemeral: request.ephemeral,
            ..spec.clone()
        };
        loop {
            // Out of the pool before anything else happens to it: whatever follows, nobody else gets it.
            let Some(mut machine) = self.shared.armed().pop_front() else {
                return manager.start(bundle, &spec).await;
            };
            if machine.is_current() {
                if let Err(error) = machine.become_wanted(&spec) {
                    // Nothing is wrong with the machine.
                    self.shared.armed().push_front(machine);
                    return Err(error);
                }
                self.shared.changed.notify_waiters();
                if let Some(started) = machine.hand_out(&spec).await? {
                    return Ok(started);
                }
            } else {
                // What it was made from was replaced since.
                self.shared.changed.notify_waiters();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.filler.abort();
        self.shared.armed().clear();
    }
}

impl Shared {
    fn armed(&self) -> MutexGuard<'_, VecDeque<ArmedMachine>> {
        // Nothing that holds it can panic halfway through a change.
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_failure(&self) -> MutexGuard<'_, Option<String>> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fill(shared: Arc<Shared>) {
    loop {
        let changed = shared.changed.notified();
        if shared.armed().len() >= shared.size {
            changed.await;
            continue;
        }
        match shared.manager.arm(&shared.bundle, &shared.spec).await {
            Ok(machine) => {
                shared.armed().push_back(machine);
                *shared.last_failure() = None;
                shared.changed.notify_waiters();
            }
            Err(error) => {
                *shared.last_failure() = Some(error.to_string());
                shared.changed.notify_waiters();
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}
