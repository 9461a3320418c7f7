//! A pool of armed machines: restored from a ready or a named snapshot, and ready to execute their
//! first instruction. Handing one out costs a record, a rename and one message to its VMM. The pool
//! is meant for processes that run long. It belongs to one process and ends with it.
//!
//! An armed machine lives in staging, where no other process looks: it has an ID but no record and
//! no name, and its VMM ends with this process until it is handed out. If this process is killed
//! with SIGKILL, a sweep removes the rest. The pool may never hand out a machine twice.
//!
//! ```text
//! empty place ── restore, do not start ──> armed ── take: record, publish, start, untie ──> sandbox
//! ```

use crate::{
    create::{
        armed::ArmedMachine,
        error::CreateError,
        spec::{SandboxSpec, StartFrom},
        started::StartedSandbox,
    },
    manager::Manager,
    mounts::Mounts,
    network::spec::NetworkSpec,
    supervision::SupervisionSpec,
};
use futures_util::future::BoxFuture;
use sandboxvm_images::bundle::Bundle;
use sandboxvm_protocol::ids::SandboxName;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, task::JoinHandle};

/// Delay before the pool is filled again after a failure, whose cause rarely goes away sooner.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A pool of armed machines. Dropping it ends the machines that were not handed out.
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
    /// Notified when a machine was taken or added, or when filling failed.
    changed: Notify,
    last_failure: Mutex<Option<String>>,
}

/// What the next sandbox of a pool is to be.
#[derive(Debug, Clone, Default)]
pub struct PoolRequest {
    /// Name of the sandbox, if it gets one.
    pub name: Option<SandboxName>,
    /// `KEY=VALUE` entries, set for every process that is started in the sandbox.
    pub env: Vec<String>,
    /// As in [`SandboxSpec::ephemeral`].
    pub ephemeral: bool,
    /// As in [`SandboxSpec::network`]. If the machines of the pool have no network card and this asks
    /// for a network, or the reverse, the sandbox does not come from the pool.
    pub network: Option<NetworkSpec>,
}

impl Pool {
    /// Creates a pool of `size` machines of the kind that `spec` describes. The pool fills itself
    /// from now on, and again after each [`Self::take`]. Name, environment, `ephemeral`, services and
    /// workspace of `spec` are ignored, and of its network only whether there is one counts. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(manager: Manager, bundle: Bundle, spec: SandboxSpec, size: usize) -> Self {
        let start_from = match spec.start_from {
            StartFrom::Boot => StartFrom::Ready,
            start_from => start_from,
        };
        let services = SupervisionSpec::default();
        let spec = SandboxSpec {
            name: None,
            env: Vec::new(),
            ephemeral: false,
            start_from,
            services,
            workspace: None,
            mounts: Mounts::default(),
            read_only_root: false,
            ..spec
        };
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

    /// Returns the number of machines that wait to be handed out.
    #[must_use]
    pub fn armed(&self) -> usize {
        self.shared.armed().len()
    }

    /// Returns why the pool could not be filled, if the last attempt failed.
    #[must_use]
    pub fn last_failure(&self) -> Option<String> {
        self.shared.last_failure().clone()
    }

    /// Waits until the pool is full. Cancel safe.
    ///
    /// # Errors
    /// The failure of the last attempt to fill the pool.
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

    /// Returns the next sandbox: an armed machine, which runs when this returns, or a new one if
    /// the pool is empty. No machine is ever handed out twice. Like [`Manager::start`], this does
    /// not wait for the agent.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub fn take<'a>(&'a self, request: &'a PoolRequest) -> BoxFuture<'a, Result<StartedSandbox, CreateError>> {
        Box::pin(async move {
            let Shared { manager, bundle, spec, .. } = &*self.shared;
            let spec = SandboxSpec {
                name: request.name.clone(),
                env: request.env.clone(),
                ephemeral: request.ephemeral,
                network: request.network.clone(),
                ..spec.clone()
            };
            if spec.network.is_some() != self.shared.spec.network.is_some() {
                return manager.start(bundle, &spec).await;
            }
            loop {
                // The machine leaves the pool before anything else happens to it, so that no other
                // caller can get it.
                let Some(mut machine) = self.shared.armed().pop_front() else {
                    return manager.start(bundle, &spec).await;
                };
                if machine.is_current() {
                    if let Err(error) = machine.become_wanted(&spec) {
                        // The machine is still good: the request was the problem.
                        self.shared.armed().push_front(machine);
                        return Err(error);
                    }
                    self.shared.changed.notify_waiters();
                    if let Some(started) = machine.hand_out(&spec).await? {
                        return Ok(started);
                    }
                } else {
                    // The files that it was made from were replaced since.
                    self.shared.changed.notify_waiters();
                }
            }
        })
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
        // A panic while the lock is held cannot leave the queue in the middle of a change.
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
