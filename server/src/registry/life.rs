//! Time and its end: prolonging, pausing to disk, resuming, killing, forking.

use super::{
    Intent, Registry,
    entry::Entry,
    error::RegistryError,
    quota::Reserved,
    record::{OnTimeout, Phase, Record, unix_millis},
};
use crate::access::keys::Key;
use sandboxvm_manager::{AtEnd, FindError, RemoveError, Sandbox};
use sandboxvm_protocol::identity::SandboxName;
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long a machine may take to come back from disk.
const RESUME_WITHIN: Duration = Duration::from_secs(120);
/// How soon an end that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

impl Registry {
    /// Gives a sandbox so much time from now on.
    pub(crate) async fn set_timeout(&self, entry: &Entry, timeout: Duration) -> Result<(), RegistryError> {
        let _change = entry.change.lock().await;
        let record = entry.record();
        self.update(entry, Record { end_at: SystemTime::now() + timeout, ..record })
    }

    /// Has it running with at least so much time left; true when it was paused.
    pub(crate) async fn connect(&self, entry: &Entry, timeout: Duration) -> Result<bool, RegistryError> {
        if entry.record().is_paused() {
            return self.resume(entry, timeout).await;
        }
        let _change = entry.change.lock().await;
        let record = entry.record();
        let end_at = SystemTime::now() + timeout;
        if end_at > record.end_at {
            self.update(entry, Record { end_at, ..record })?;
        }
        Ok(false)
    }

    /// Puts all of it on disk and ends its VMM.
    pub(crate) async fn pause(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _change = entry.change.lock().await;
        self.pause_held(entry).await
    }

    #[tracing::instrument(skip_all)]
    async fn pause_held(&self, entry: &Entry) -> Result<(), RegistryError> {
        let record = entry.record();
        if record.is_paused() {
            return Err(RegistryError::AlreadyPaused(entry.id.to_string()));
        }
        let sandbox = self.sandbox(entry)?;
        let snapshot = paused_name(entry)?;
        self.remove_snapshot_of_manager(&snapshot)?;
        // From here on nothing happens in it that the snapshot would not have.
        sandbox.pause().await?;
        if let Err(error) = sandbox.snapshot(snapshot.clone()).await {
            sandbox.resume().await?;
            return Err(error.into());
        }
        sandbox.park()?;
        self.update(entry, Record { phase: Phase::Paused { snapshot }, ..record })?;
        sandbox.kill().await?;
        Ok(())
    }

    /// Brings a paused one back, with so much time; false when somebody else did meanwhile.
    #[tracing::instrument(skip_all)]
    pub(crate) async fn resume(&self, entry: &Entry, timeout: Duration) -> Result<bool, RegistryError> {
        let _change = entry.change.lock().await;
        let record = entry.record();
        let Phase::Paused { snapshot } = record.phase.clone() else { return Ok(false) };
        let permit = self.starts.begin(&record.owner).await?;
        let sandbox = self.sandbox(entry)?;
        if let Err(error) = sandbox.reset_and(&self.bundle, Some(&snapshot), RESUME_WITHIN, || drop(permit)).await {
            // Still paused, as its record says: a machine that does not answer must not run on.
            sandbox.kill().await?;
            return Err(error.into());
        }
        let end_at = SystemTime::now() + timeout;
        self.update(entry, Record { phase: Phase::Running, end_at, ..record })?;
        sandbox.unpark()?;
        self.remove_snapshot_of_manager(&snapshot)?;
        Ok(true)
    }

    /// Ends it and removes all of it.
    pub(crate) async fn kill(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _change = entry.change.lock().await;
        self.kill_held(entry).await
    }

    #[tracing::instrument(skip_all)]
    pub(super) async fn kill_held(&self, entry: &Entry) -> Result<(), RegistryError> {
        match self.manager.remove(entry.id.as_str(), true).await {
            Ok(_) | Err(RemoveError::Find(FindError::Unknown(_))) => {}
            Err(error) => return Err(error.into()),
        }
        self.remove_snapshot_of_manager(&paused_name(entry)?)?;
        self.forget(entry)
    }

    /// Running copies of it, which goes on. Each has an owner, metadata and rules like it, and so much time.
    pub(crate) async fn fork(
        &self,
        key: &Key,
        entry: &Entry,
        count: u32,
        timeout: Duration,
    ) -> Result<Vec<Arc<Entry>>, RegistryError> {
        let mut reserved = self.reserve(key, count)?;
        let _change = entry.change.lock().await;
        let record = entry.record();
        if record.is_paused() {
            return Err(RegistryError::Paused(entry.id.to_string()));
        }
        // All copies of a batch are waited for before any of them is handed over, so this counts for its key alone.
        let _permit = self.starts.begin_own(&record.owner).await?;
        let sandbox = self.sandbox(entry)?;
        let now = SystemTime::now();
        let name = format!("fork-{}", entry.id);
        self.intents.put(&name, &Intent::Fork { of: entry.id.clone(), since: unix_millis(now) })?;
        let made = self.fork_held(&sandbox, &record, count, now + timeout, &mut reserved).await;
        self.intents.remove(&name)?;
        made
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
        let now = SystemTime::now();
        let mut made = Vec::new();
        for copy in &forked.copies {
            let record = Record { id: copy.id().clone(), started_at: now, end_at, ..record.clone() };
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

    /// Ends what has no time left, as it comes; never returns.
    pub(crate) async fn keep_time(&self) {
        loop {
            let changed = self.time_changed.notified();
            let now = SystemTime::now();
            let mut next = None;
            for entry in self.entries() {
                let record = entry.record();
                if record.is_paused() {
                    continue;
                }
                match record.end_at.duration_since(now) {
                    Ok(left) if !left.is_zero() => next = Some(next.map_or(left, |next: Duration| next.min(left))),
                    _ => {
                        if let Err(error) = self.end(&entry).await {
                            tracing::warn!(sandbox = %entry.id, %error, "its time is up and it does not end yet");
                            next = Some(next.map_or(AFTER_FAILURE, |next: Duration| next.min(AFTER_FAILURE)));
                        }
                    }
                }
            }
            match next {
                Some(next) => drop(tokio::time::timeout(next, changed).await),
                None => changed.await,
            }
        }
    }

    /// What happens at its end, unless it got more time meanwhile.
    async fn end(&self, entry: &Entry) -> Result<(), RegistryError> {
        let _change = entry.change.lock().await;
        let record = entry.record();
        if record.is_paused() || record.end_at > SystemTime::now() {
            return Ok(());
        }
        tracing::info!(sandbox = %entry.id, then = ?record.on_timeout, "its time is up");
        let is_live =
            matches!(self.sandbox(entry).and_then(|sandbox| Ok(sandbox.state()?)), Ok(state) if state.is_live());
        match record.on_timeout {
            OnTimeout::Pause if is_live => self.pause_held(entry).await,
            OnTimeout::Pause | OnTimeout::Kill => {
                if let Ok(sandbox) = self.sandbox(entry).as_ref() {
                    sandbox.announce_expiry(AtEnd::Remove);
                }
                self.kill_held(entry).await
            }
        }
    }

    pub(super) fn sandbox(&self, entry: &Entry) -> Result<Sandbox, RegistryError> {
        self.manager.find(entry.id.as_str()).map_err(|error| match error {
            FindError::Unknown(_) => RegistryError::Unknown(entry.id.to_string()),
            error => error.into(),
        })
    }
}

/// The snapshot that holds a paused sandbox.
pub(super) fn paused_name(entry: &Entry) -> Result<SandboxName, RegistryError> {
    SandboxName::try_from(format!("paused-{}", entry.id))
        .map_err(|error| RegistryError::Entropy(io::Error::other(error)))
}
