//! The audit logs of each key's sandboxes, which stay for some time after them: whose they are, how much of the disk they
//! take together, and when they are removed.

use super::{
    Registry,
    error::RegistryError,
    store::{Store, StoreError},
};
use crate::access::keys::{Key, KeyId};
use sandboxvm_manager::Manager;
use sandboxvm_protocol::identity::SandboxId;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a count of a key's logs is believed: a key makes few sandboxes in that time, and each log has its own maximum.
const BELIEVED_FOR: Duration = Duration::from_secs(10);
/// Between two removals of old logs.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: u64 = 1 << 20;

/// A sandbox that is gone and whose log may be there.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Gone {
    sandbox: SandboxId,
    owner: KeyId,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Trails {
    gone: Store<Gone>,
    of_gone: Mutex<HashMap<KeyId, HashSet<SandboxId>>>,
    counted: Mutex<HashMap<KeyId, (Instant, u64)>>,
    mib_per_key: u64,
    kept_for: Duration,
}

impl Trails {
    pub(super) fn open(directory: PathBuf, mib_per_key: u64, days: u32) -> Result<Self, StoreError> {
        let gone = Store::open(directory)?;
        let mut of_gone: HashMap<KeyId, HashSet<SandboxId>> = HashMap::new();
        for Gone { sandbox, owner } in gone.all()? {
            of_gone.entry(owner).or_default().insert(sandbox);
        }
        let kept_for = DAY * days;
        Ok(Self { gone, of_gone: Mutex::new(of_gone), counted: Mutex::default(), mib_per_key, kept_for })
    }

    /// A sandbox is gone, and its log is still its key's.
    pub(super) fn outlives(&self, sandbox: &SandboxId, owner: &KeyId) -> Result<(), StoreError> {
        self.gone.put(sandbox.as_str(), &Gone { sandbox: sandbox.clone(), owner: owner.clone() })?;
        self.of_gone().entry(owner.clone()).or_default().insert(sandbox.clone());
        Ok(())
    }

    /// Removes what is too old, and forgets whose it was. Blocks.
    fn prune(&self, manager: &Manager) -> Result<usize, RegistryError> {
        let pruned =
            manager.prune_audit(self.kept_for).map_err(|error| RegistryError::Task(io::Error::other(error)))?;
        let all: Vec<SandboxId> = self.of_gone().values().flatten().cloned().collect();
        for sandbox in all.iter().filter(|sandbox| !manager.trail(sandbox).exists()) {
            self.gone.remove(sandbox.as_str())?;
            self.of_gone().retain(|_, own| {
                own.remove(sandbox);
                !own.is_empty()
            });
        }
        Ok(pruned)
    }

    fn of_gone(&self) -> MutexGuard<'_, HashMap<KeyId, HashSet<SandboxId>>> {
        self.of_gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<KeyId, (Instant, u64)>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Refuses a new sandbox to a key whose logs take all that they may.
    pub(super) async fn check_audit(&self, key: &Key) -> Result<(), RegistryError> {
        let most_mib = key.limits.audit_mib.unwrap_or(self.trails.mib_per_key);
        let used = self.logged_by(&key.id).await?;
        if used >= most_mib.saturating_mul(MIB) {
            return Err(RegistryError::AuditQuota { used_mib: used / MIB, most_mib });
        }
        Ok(())
    }

    async fn logged_by(&self, owner: &KeyId) -> Result<u64, RegistryError> {
        if let Some((at, bytes)) = self.trails.counted().get(owner)
            && at.elapsed() < BELIEVED_FOR
        {
            return Ok(*bytes);
        }
        let mut sandboxes: HashSet<SandboxId> = self.trails.of_gone().get(owner).cloned().unwrap_or_default();
        sandboxes.extend(self.list(owner).iter().map(|entry| entry.id.clone()));
        let manager = self.manager.clone();
        let counting =
            tokio::task::spawn_blocking(move || sandboxes.iter().map(|id| manager.trail(id).disk_bytes()).sum());
        let bytes = counting.await.map_err(|error| RegistryError::Task(io::Error::other(error)))?;
        self.trails.counted().insert(owner.clone(), (Instant::now(), bytes));
        Ok(bytes)
    }

    /// Removes old audit logs from time to time; never returns.
    pub(crate) async fn keep_trails(&self) {
        loop {
            // Some files for each sandbox of a month: off this thread while others have requests on it.
            match tokio::task::block_in_place(|| self.trails.prune(&self.manager)) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed old audit logs"),
                Err(error) => tracing::warn!(%error, "cannot remove old audit logs"),
            }
            self.trails.counted().retain(|_, (at, _)| at.elapsed() < BELIEVED_FOR);
            tokio::time::sleep(PRUNE_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn logs_of_gone_sandboxes_stay_their_keys_until_they_are_old() {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(&dir.path().join("home")).unwrap();
        let (id, other) = ["abcdefgh", "hgfedcba"].map(|id| SandboxId::try_from(id.to_owned()).unwrap()).into();
        let owner = KeyId("1".into());
        let store = || dir.path().join("gone");
        let trails = Trails::open(store(), 1, 1).unwrap();
        fs::write(manager.trail(&id).path(), "{}\n").unwrap();
        for sandbox in [&id, &other] {
            trails.outlives(sandbox, &owner).unwrap();
        }
        // The next server knows it too; one whose log is gone is forgotten.
        let trails = Trails::open(store(), 1, 1).unwrap();
        assert_eq!(trails.of_gone()[&owner].len(), 2);
        assert_eq!(trails.prune(&manager).unwrap(), 0);
        assert_eq!(trails.of_gone()[&owner], HashSet::from([id.clone()]));
        let trails = Trails::open(store(), 1, 0).unwrap();
        assert_eq!(trails.prune(&manager).unwrap(), 1);
        assert!(trails.of_gone().is_empty() && !manager.trail(&id).exists());
        assert!(Trails::open(store(), 1, 1).unwrap().of_gone().is_empty());
    }
}
