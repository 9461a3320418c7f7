//! Changes of an existing sandbox: extending its time, pausing to disk, resuming, killing, forking.
//!
//! Calls on one sandbox come one after the other. Each takes the sandbox's `change` lock first ([`Registry::alter`]), sees
//! only then what the sandbox is, and answers what is true of it before it gives the lock back. What changes between
//! running, paused and gone closes the sandbox's gate meanwhile, where requests to it wait (`gate`). Changes by other
//! processes are excluded by the manager's lock where they matter, and found out by looking where they cannot be.

use super::{
    entry::Entry,
    error::RegistryError,
    record::{OnTimeout, Phase, Record},
    state::{Intent, Registry, paused_name},
};
use crate::{access::keys::Key, quotas::count::Reserved, store::unix_millis};
use futures_util::future::try_join_all;
use sandboxvm_manager::{AtEnd, FindError, RemoveError, Sandbox, StopError, Stopped};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::MutexGuard,
    time::{sleep, timeout},
};

/// How long a machine may take to come back from disk.
const RESUME_WITHIN: Duration = Duration::from_secs(120);
/// How long a pause waits for requests that have passed the gate to begin what they ask for.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);

/// How long the agent of a sandbox that is to be paused may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// How long processes may take to end when the memory of their sandbox is not kept.
const GRACE: Duration = Duration::from_secs(5);
/// How long a guest may take to boot from its own disk, also where its kernel is interpreted.
const BOOT_WITHIN: Duration = Duration::from_secs(300);

/// How long the directory of a sandbox may stay after its machine was ended to remove it.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// What of a paused sandbox comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    WithMemory,
    /// Its disk: it boots.
    FromDisk,
}

impl Back {
    /// As clients say it; absent is yes.
    pub(crate) fn with_memory(memory: Option<bool>) -> Self {
        if memory == Some(false) { Self::FromDisk } else { Self::WithMemory }
    }
}

impl Registry {
    /// Excludes other changes of a sandbox that is there.
    pub(super) async fn alter<'e>(&self, entry: &'e Entry) -> Result<MutexGuard<'e, ()>, RegistryError> {
        let change = entry.change.lock().await;
        if entry.is_gone() {
            return Err(RegistryError::Unknown(entry.id.to_string()));
        }
        match self.manager.find(entry.id.as_str()) {
            Ok(_) => Ok(change),
            Err(FindError::Unknown(_)) => {
                // Another process removed it.
                self.lose(entry)?;
                Err(RegistryError::Unknown(entry.id.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a sandbox so much time from now on.
    pub(crate) async fn set_timeout(&self, entry: &Entry, timeout: Duration) -> Result<(), RegistryError> {
        let _change = self.alter(entry).await?;
        let record = entry.record();
        self.update(entry, Record { end_at: SystemTime::now() + timeout, ..record })
    }

    /// Has its tokens open nothing from now on; others do.
    pub(crate) async fn revoke_tokens(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _change = self.alter(entry).await?;
        let record = entry.record();
        let next = record.token_generation.saturating_add(1);
        self.update(entry, Record { token_generation: next, ..record })
    }

    /// Gives a running sandbox at least so much time from now on.
    pub(crate) async fn extend(&self, entry: &Entry, timeout: Duration) -> Result<(), RegistryError> {
        let _change = self.alter(entry).await?;
        self.running(entry).await?;
        self.extend_held(entry, timeout)
    }

    fn extend_held(&self, entry: &Entry, timeout: Duration) -> Result<(), RegistryError> {
        let record = entry.record();
        let end_at = SystemTime::now() + timeout;
        if end_at > record.end_at { self.update(entry, Record { end_at, ..record }) } else { Ok(()) }
    }

    /// Makes sure that it runs, with at least so much time left; true when it was paused.
    pub(crate) async fn connect(&self, entry: &Entry, timeout: Duration, back: Back) -> Result<bool, RegistryError> {
        let _change = self.alter(entry).await?;
        if entry.record().is_paused() {
            self.resume_held(entry, timeout, back).await?;
            return Ok(true);
        }
        self.running(entry).await?;
        self.extend_held(entry, timeout)?;
        Ok(false)
    }

    /// Brings a paused one back, with so much time; false when it runs.
    pub(crate) async fn resume(&self, entry: &Entry, timeout: Duration, back: Back) -> Result<bool, RegistryError> {
        let _change = self.alter(entry).await?;
        if !entry.record().is_paused() {
            return Ok(false);
        }
        self.resume_held(entry, timeout, back).await.map(|()| true)
    }

    /// Puts all of it on disk, or its disk alone, and ends its VMM. With `healthy`, and always without memory, only where
    /// its agent answers.
    pub(crate) async fn pause(&self, key: &Key, entry: &Entry, back: Back, healthy: bool) -> Result<(), RegistryError> {
        let _change = self.alter(entry).await?;
        if entry.record().is_paused() {
            return Err(RegistryError::AlreadyPaused(entry.id.to_string()));
        }
        let sandbox = self.running(entry).await?;
        if healthy || back == Back::FromDisk {
            let answers = timeout(ANSWERS_WITHIN, sandbox.processes()).await;
            if !matches!(answers, Ok(Ok(_))) {
                return self.or_gone(entry, Err(RegistryError::Unresponsive(entry.id.to_string()))).await;
            }
        }
        match back {
            Back::FromDisk => self.pause_filesystem_held(entry).await,
            Back::WithMemory => {
                self.check_no_volumes(entry)?;
                self.check_storage(key, entry).await?;
                self.pause_held(entry).await
            }
        }
    }

    /// Stops it gracefully, so that everything its processes wrote is on its disk.
    #[tracing::instrument(skip_all)]
    async fn pause_filesystem_held(&self, entry: &Entry) -> Result<(), RegistryError> {
        let sandbox = self.running(entry).await?;
        let gate = entry.gate.close();
        gate.begun(BEGUN_WITHIN).await;
        let paused = async {
            let _change = sandbox.change().await?;
            // Before its end: a server that is killed meanwhile must not take it for one that ended by itself.
            sandbox.park()?;
            if let Err(error) = self.update(entry, Record { phase: Phase::PausedFilesystem, ..entry.record() }) {
                sandbox.unpark()?;
                return Err(error);
            }
            match sandbox.stop(GRACE).await {
                Ok(Stopped::InOrder) | Err(StopError::NotRunning { .. }) => Ok(()),
                Ok(stopped) => {
                    tracing::warn!(sandbox = %entry.id, ?stopped, "paused without memory, but did not stop gracefully");
                    Ok(())
                }
                Err(StopError::End(error)) => Err(error.into()),
                Err(StopError::Directory(error)) => Err(error.into()),
            }
        };
        self.or_gone(entry, paused.await).await
    }

    #[tracing::instrument(skip_all)]
    pub(super) async fn pause_held(&self, entry: &Entry) -> Result<(), RegistryError> {
        let sandbox = self.running(entry).await?;
        let gate = entry.gate.close();
        gate.begun(BEGUN_WITHIN).await;
        let snapshot = paused_name(entry)?;
        self.remove_snapshot_of_manager(&snapshot)?;
        let paused = async {
            let change = sandbox.change().await?;
            // From here on nothing happens in it that the snapshot would not have.
            sandbox.pause().await?;
            let kept = async {
                change.snapshot(snapshot.clone()).await?;
                sandbox.park()?;
                self.update(entry, Record { phase: Phase::Paused { snapshot: snapshot.clone() }, ..entry.record() })
            };
            if let Err(error) = kept.await {
                // It runs on, and nothing of the pause is left.
                sandbox.unpark()?;
                sandbox.resume().await?;
                self.remove_snapshot_of_manager(&snapshot)?;
                return Err(error);
            }
            Ok(sandbox.kill().await?)
        };
        self.or_gone(entry, paused.await).await
    }

    /// Brings a paused one back, with so much time.
    #[tracing::instrument(skip_all)]
    pub(super) async fn resume_held(&self, entry: &Entry, timeout: Duration, back: Back) -> Result<(), RegistryError> {
        let record = entry.record();
        let _gate = entry.gate.close();
        let permit = self.starts.begin(&record.owner).await?;
        let sandbox = self.sandbox(entry)?;
        let resumed = async {
            let host_is_done = || drop(permit);
            let came_back = match (&record.phase, back) {
                (Phase::Paused { snapshot }, Back::WithMemory) => {
                    sandbox.resume_from(&self.bundle, snapshot, RESUME_WITHIN, host_is_done).await
                }
                _ => sandbox.resume_from_disk(&self.bundle, BOOT_WITHIN, host_is_done).await,
            };
            let came_back = match came_back {
                Ok(_) => self.restart_network(&sandbox).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = came_back {
                // Still paused, as its record says: a machine that does not answer must not run on.
                sandbox.kill().await?;
                return Err(error);
            }
            let end_at = SystemTime::now() + timeout;
            self.update(entry, Record { phase: Phase::Running, end_at, ..record })?;
            sandbox.unpark()?;
            self.remove_snapshot_of_manager(&paused_name(entry)?)
        };
        self.or_gone(entry, resumed.await).await
    }

    /// Ends it and removes all of it.
    pub(crate) async fn kill(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _change = self.alter(entry).await?;
        self.kill_held(entry).await
    }

    #[tracing::instrument(skip_all)]
    pub(super) async fn kill_held(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _gate = entry.gate.close();
        match self.manager.remove(entry.id.as_str(), true).await {
            Ok(_) | Err(RemoveError::Find(FindError::Unknown(_))) => self.lose(entry),
            Err(error) => Err(error.into()),
        }
    }

    /// Running copies of it, while it runs on. Each has an owner, metadata and a network like it, without the headers of its
    /// rules, and so much time.
    pub(crate) async fn fork(
        &self,
        key: &Key,
        entry: &Entry,
        count: u32,
        timeout: Duration,
    ) -> Result<Vec<Arc<Entry>>, RegistryError> {
        let mut reserved = self.reserve(key, count)?;
        self.check_audit(key).await?;
        let _change = self.alter(entry).await?;
        let sandbox = self.running(entry).await?;
        self.check_no_volumes(entry)?;
        self.check_storage(key, entry).await?;
        let record = entry.record();
        // All copies of a batch are waited for before any of them is handed over, so this counts for its key alone.
        let _permit = self.starts.begin_own(&record.owner).await?;
        let now = SystemTime::now();
        let name = format!("fork-{}", entry.id);
        self.intents.put(&name, &Intent::Fork { of: entry.id.clone(), since: unix_millis(now) })?;
        let made = self.fork_held(&sandbox, &record, count, now + timeout, &mut reserved).await;
        self.intents.remove(&name)?;
        self.or_gone(entry, made).await
    }

    #[tracing::instrument(skip_all)]
    async fn fork_held(
        &self,
        sandbox: &Sandbox,
        record: &Record,
        count: u32,
        end_at: SystemTime,
        reserved: &mut Reserved<'_>,
    ) -> Result<Vec<Arc<Entry>>, RegistryError> {
        let forked = sandbox.fork(count).await?;
        let networks = forked.copies.iter().map(|copy| self.restart_network(copy));
        if let Err(error) = try_join_all(networks).await {
            for copy in &forked.copies {
                // The cause is what the caller needs.
                let _ = self.manager.remove(copy.id().as_str(), true).await;
            }
            return Err(error);
        }
        let now = SystemTime::now();
        let mut made = Vec::new();
        for copy in &forked.copies {
            let egress = record.egress.of_copy();
            let record = Record { id: copy.id().clone(), started_at: now, end_at, egress, ..record.clone() };
            if let Err(error) = self.records.put(record.id.as_str(), &record) {
                for copy in &forked.copies[made.len()..] {
                    // The cause is what the caller needs.
                    let _ = self.manager.remove(copy.id().as_str(), true).await;
                }
                return Err(error.into());
            }
            made.push(reserved.becomes(|| self.add(record)));
        }
        Ok(made)
    }

    /// What happens when a sandbox has expired, unless it got more time meanwhile.
    pub(super) async fn end(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _change = match self.alter(entry).await {
            Err(RegistryError::Unknown(_)) => return Ok(()),
            altered => altered?,
        };
        let record = entry.record();
        if record.is_paused() || record.end_at > SystemTime::now() {
            return Ok(());
        }
        tracing::info!(sandbox = %entry.id, then = ?record.on_timeout, "sandbox expired");
        let ended = match record.on_timeout {
            OnTimeout::Pause => self.pause_held(entry).await,
            OnTimeout::PauseFilesystem => self.pause_filesystem_held(entry).await,
            OnTimeout::Kill => {
                if let Ok(sandbox) = self.sandbox(entry) {
                    sandbox.announce_expiry(AtEnd::Remove);
                }
                self.kill_held(entry).await
            }
        };
        match ended {
            // Its machine had ended, and it is gone.
            Err(RegistryError::Unknown(_)) => Ok(()),
            ended => ended,
        }
    }

    /// One that runs, for a caller that has excluded other changes. One whose machine has ended is removed.
    pub(super) async fn running(&self, entry: &Entry) -> Result<Sandbox, RegistryError> {
        if entry.record().is_paused() {
            return Err(RegistryError::Paused(entry.id.to_string()));
        }
        let sandbox = self.sandbox(entry)?;
        // Not between the two machines of a reset.
        let is_live = async { Ok(sandbox.change().await?.state()?.is_live()) };
        if self.or_gone(entry, is_live.await).await? {
            return Ok(sandbox);
        }
        self.note_end(entry, &sandbox.state()?);
        // Its VMM ended by itself, or another process ended it.
        self.kill_held(entry).await?;
        Err(RegistryError::Unknown(entry.id.to_string()))
    }

    /// What came of a change. Where it failed because another process removed the sandbox meanwhile, that alone: the machine
    /// ends first then, and its directory goes a moment later.
    pub(super) async fn or_gone<T>(&self, entry: &Entry, result: Result<T, RegistryError>) -> Result<T, RegistryError> {
        let deadline = Instant::now() + if result.is_err() { REMOVED_WITHIN } else { Duration::ZERO };
        loop {
            let is_live = match self.manager.find(entry.id.as_str()) {
                Err(FindError::Unknown(_)) => {
                    self.lose(entry)?;
                    // What was done was done before that.
                    return result.map_err(|_| RegistryError::Unknown(entry.id.to_string()));
                }
                Ok(sandbox) => sandbox.state().is_ok_and(|state| state.is_live()),
                Err(_) => return result,
            };
            if is_live || Instant::now() >= deadline {
                return result;
            }
            sleep(POLL).await;
        }
    }
}
