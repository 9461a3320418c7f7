//! Which sandboxes and snapshots a client may use: those that this server created, and those that its settings name. Every tool
//! checks here, so a model that follows malicious instructions cannot reach others. Also removes what was created when the
//! server ends.

use crate::settings::Settings;
use sandboxvm_manager::{BootableImage, FindError, Manager, RemoveError, Sandbox, SandboxId, SandboxName};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio_util::sync::CancellationToken;

/// Maximum number of snapshots of one server.
const MAX_SNAPSHOTS: usize = 32;

/// Why a client cannot use something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScopeError {
    /// It is not in scope. Does not reveal whether another sandbox has this name.
    #[error("this server has no sandbox {0:?}: sandbox_list lists its sandboxes, sandbox_create creates one")]
    Unknown(String),
    /// It expired, or another program removed it.
    #[error("sandbox {0:?} is gone: it expired or was removed; sandbox_create creates another")]
    Gone(String),
    /// The settings name it, so the server did not create it.
    #[error("cannot remove sandbox {0:?}: it was not created by this server, which may only use it")]
    NotOurs(String),
    /// It is not in scope.
    #[error("this server has no snapshot {0:?}: sandbox_list lists its snapshots, sandbox_snapshot creates one")]
    UnknownSnapshot(String),
    /// It is not in scope.
    #[error("the user does not permit image {asked:?}: {}", one_of(.permitted))]
    UnknownImage {
        /// What the client asked for.
        asked: String,
        /// The names of those that are in scope.
        permitted: Vec<String>,
    },
    /// The limit of the server is reached.
    #[error("this server has {now} of at most {most} sandboxes: remove one with sandbox_remove")]
    TooMany {
        /// The limit.
        most: usize,
        /// Created, or being created.
        now: usize,
    },
    /// As for sandboxes.
    #[error("this server has reached its limit of {MAX_SNAPSHOTS} snapshots: use one of those that sandbox_list lists")]
    TooManySnapshots,
    /// The server is shutting down.
    #[error("the server is shutting down and removes the sandboxes that it created")]
    Closing,
    /// The manager cannot open it.
    #[error(transparent)]
    Find(#[from] FindError),
}

fn one_of(images: &[String]) -> String {
    if images.is_empty() { "leave it out".to_owned() } else { format!("use one of {}", images.join(", ")) }
}

#[derive(Debug, Default)]
struct Held {
    made: BTreeMap<SandboxId, Option<SandboxName>>,
    /// Being created.
    coming: usize,
    snapshots: Vec<SandboxName>,
    snapshots_coming: usize,
}

/// The state that the clients of a server share.
#[derive(Debug)]
pub(crate) struct Scope {
    settings: Settings,
    held: Mutex<Held>,
    closing: CancellationToken,
    /// Locked for reading by every call while it runs, and for writing by the end of the server.
    calls: RwLock<()>,
}

impl Scope {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, held: Mutex::default(), closing: CancellationToken::new(), calls: RwLock::new(()) }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn manager(&self) -> &Manager {
        &self.settings.manager
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // No panic can leave it inconsistent: it is consistent between any two statements.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delays the end of the server while a call runs. The call is cancelled by [`Self::closing`].
    pub(crate) async fn begin_call(&self) -> Result<RwLockReadGuard<'_, ()>, ScopeError> {
        let call = self.calls.read().await;
        if self.closing.is_cancelled() { Err(ScopeError::Closing) } else { Ok(call) }
    }

    /// Resolves when the server is to end.
    pub(crate) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Finds a sandbox by its ID or name.
    pub(crate) fn find(&self, reference: &str) -> Result<Sandbox, ScopeError> {
        let id = self.resolve(reference)?;
        let sandbox = match self.manager().find(id.as_str()) {
            Ok(sandbox) => sandbox,
            Err(FindError::Unknown(_)) => {
                self.held().made.remove(&id);
                return Err(ScopeError::Gone(reference.to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        // The call continues without a supervisor; the next call tries again.
        let _ = sandbox.ensure_supervised(&self.settings.supervisor);
        Ok(sandbox)
    }

    fn resolve(&self, reference: &str) -> Result<SandboxId, ScopeError> {
        let held = self.held();
        let is_named = |name: &Option<SandboxName>| name.as_ref().is_some_and(|name| name.as_str() == reference);
        let made = held.made.iter().find(|(id, name)| id.as_str() == reference || is_named(name));
        if let Some((id, _)) = made {
            return Ok(id.clone());
        }
        drop(held);
        let given = self.settings.sandboxes.iter().find(|id| {
            id.as_str() == reference
                || self.manager().find(id.as_str()).is_ok_and(|sandbox| is_named(&sandbox.record().name))
        });
        given.cloned().ok_or_else(|| ScopeError::Unknown(reference.to_owned()))
    }

    /// Returns all sandboxes in scope, and whether this server created them.
    pub(crate) fn sandboxes(&self) -> Vec<(Sandbox, bool)> {
        let made: Vec<SandboxId> = self.held().made.keys().cloned().collect();
        let given = self.settings.sandboxes.iter().cloned().map(|id| (id, false));
        let all = made.into_iter().map(|id| (id, true)).chain(given);
        all.filter_map(|(id, made)| Some((self.find(id.as_str()).ok()?, made))).collect()
    }

    /// Returns the names of the snapshots in scope.
    pub(crate) fn snapshots(&self) -> Vec<SandboxName> {
        self.settings.templates.iter().chain(&self.held().snapshots).cloned().collect()
    }

    /// Finds a snapshot in scope.
    pub(crate) fn snapshot(&self, name: &str) -> Result<SandboxName, ScopeError> {
        let found = self.snapshots().into_iter().find(|snapshot| snapshot.as_str() == name);
        found.ok_or_else(|| ScopeError::UnknownSnapshot(name.to_owned()))
    }

    /// Finds a container image in scope.
    pub(crate) fn image(&self, name: &str) -> Result<&BootableImage, ScopeError> {
        let images = &self.settings.images;
        let unknown =
            || ScopeError::UnknownImage { asked: name.to_owned(), permitted: images.keys().cloned().collect() };
        images.get(name).ok_or_else(unknown)
    }

    /// Reserves room for `count` sandboxes that are about to be created.
    pub(crate) fn room(&self, count: usize) -> Result<Room<'_>, ScopeError> {
        let most = self.settings.max_sandboxes;
        let gone: Vec<SandboxId> = {
            let held = self.held();
            let is_gone = |id: &&SandboxId| matches!(self.manager().find(id.as_str()), Err(FindError::Unknown(_)));
            held.made.keys().filter(is_gone).cloned().collect()
        };
        let mut held = self.held();
        held.made.retain(|id, _| !gone.contains(id));
        let now = held.made.len() + held.coming;
        if now.saturating_add(count) > most {
            return Err(ScopeError::TooMany { most, now });
        }
        held.coming += count;
        Ok(Room { scope: self, count })
    }

    /// Reserves room for a snapshot that is about to be created.
    pub(crate) fn room_for_snapshot(&self) -> Result<SnapshotRoom<'_>, ScopeError> {
        let mut held = self.held();
        if held.snapshots.len() + held.snapshots_coming >= MAX_SNAPSHOTS {
            return Err(ScopeError::TooManySnapshots);
        }
        held.snapshots_coming += 1;
        Ok(SnapshotRoom { scope: self })
    }

    /// Removes a sandbox that this server created.
    pub(crate) async fn remove(&self, reference: &str) -> Result<SandboxId, RemoveFailure> {
        let id = self.resolve(reference)?;
        if !self.held().made.contains_key(&id) {
            return Err(ScopeError::NotOurs(reference.to_owned()).into());
        }
        match self.manager().remove(id.as_str(), true).await {
            Ok(_) | Err(RemoveError::Find(FindError::Unknown(_))) => {}
            Err(error) => return Err(error.into()),
        }
        self.held().made.remove(&id);
        Ok(id)
    }

    /// Cancels all calls, which report that.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Cancels all calls and, unless the settings say otherwise, removes what was created. Returns what could not be removed.
    pub(crate) async fn end(&self) -> Vec<String> {
        self.close();
        let _none_works = self.calls.write().await;
        if self.settings.keep {
            return Vec::new();
        }
        let Held { made, snapshots, .. } = std::mem::take(&mut *self.held());
        let mut failures = Vec::new();
        for id in made.keys() {
            match self.manager().remove(id.as_str(), true).await {
                Ok(_) | Err(RemoveError::Find(FindError::Unknown(_))) => {}
                Err(error) => failures.push(format!("cannot remove sandbox {id}: {error}")),
            }
        }
        for name in snapshots {
            if self.manager().has_snapshot(&name)
                && let Err(error) = self.manager().remove_snapshot(name.as_str())
            {
                failures.push(format!("cannot remove snapshot {name}: {error}"));
            }
        }
        failures
    }
}

/// Why a sandbox was not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveFailure {
    /// It is not in scope.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// The manager failed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// Room that is reserved for sandboxes that are being created.
#[derive(Debug)]
pub(crate) struct Room<'s> {
    scope: &'s Scope,
    count: usize,
}

impl Room<'_> {
    /// Turns one reservation into a sandbox.
    pub(crate) fn made(&mut self, sandbox: &Sandbox) {
        let mut held = self.scope.held();
        held.made.insert(sandbox.id().clone(), sandbox.record().name.clone());
        held.coming -= 1;
        self.count -= 1;
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.scope.held().coming -= self.count;
    }
}

/// Room that is reserved for a snapshot that is being created.
#[derive(Debug)]
pub(crate) struct SnapshotRoom<'s> {
    scope: &'s Scope,
}

impl SnapshotRoom<'_> {
    /// Turns the reservation into a snapshot.
    pub(crate) fn made(self, name: SandboxName) {
        self.scope.held().snapshots.push(name);
    }
}

impl Drop for SnapshotRoom<'_> {
    fn drop(&mut self) {
        self.scope.held().snapshots_coming -= 1;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sandboxvm_images::bundle::{Bundle, BundleSources};
    use sandboxvm_manager::{EgressLimits, Permitted, Reach, SupervisorProgram};

    /// The scope of an empty home.
    pub(crate) fn scope(home: &tempfile::TempDir, max_sandboxes: usize) -> Scope {
        Scope::new(Settings {
            manager: Manager::open(home.path()).unwrap(),
            bundle: Bundle::find(&BundleSources::default()),
            supervisor: SupervisorProgram { program: "/nonexistent".into(), arguments: Vec::new() },
            sandboxes: Vec::new(),
            images: BTreeMap::new(),
            templates: vec![SandboxName::try_from("given".to_owned()).unwrap()],
            max_sandboxes,
            secrets: Vec::new(),
            network: Permitted {
                reach: Reach::Nothing,
                allow: Vec::new(),
                resolvers: false,
                proxies: false,
                limits: EgressLimits::default(),
            },
            keep: false,
        })
    }

    #[test]
    fn there_is_room_for_so_many_and_what_failed_gives_its_room_back() {
        let home = tempfile::tempdir().unwrap();
        let scope = scope(&home, 3);
        let two = scope.room(2).unwrap();
        let error = scope.room(2).unwrap_err().to_string();
        assert!(error.contains("has 2 of at most 3 sandboxes"), "{error}");
        drop(two);
        drop(scope.room(3).unwrap());
        assert!(scope.room(usize::MAX).is_err());
    }

    #[test]
    fn foreign_sandboxes_are_unknown_by_id_and_name() {
        let home = tempfile::tempdir().unwrap();
        let scope = scope(&home, 3);
        for reference in ["abcdefghabcdefgh", "demo", "", "../x"] {
            assert!(matches!(scope.find(reference), Err(ScopeError::Unknown(_))), "{reference}");
        }
        let id = SandboxId::try_from("abcdefghabcdefgh".to_owned()).unwrap();
        scope.held().made.insert(id, SandboxName::try_from("demo".to_owned()).ok());
        // One that was made and is gone is told from one that never was, once.
        assert!(matches!(scope.find("demo"), Err(ScopeError::Gone(_))));
        assert!(matches!(scope.find("demo"), Err(ScopeError::Unknown(_))));
    }

    #[test]
    fn only_given_and_own_snapshots_are_gone_on_from() {
        let home = tempfile::tempdir().unwrap();
        let scope = scope(&home, 3);
        assert_eq!(scope.snapshot("given").unwrap().as_str(), "given");
        assert!(scope.snapshot("others").is_err());
        scope.room_for_snapshot().unwrap().made(SandboxName::try_from("own".to_owned()).unwrap());
        assert_eq!(scope.snapshot("own").unwrap().as_str(), "own");
        let rooms: Vec<_> = (1..MAX_SNAPSHOTS).map(|_| scope.room_for_snapshot().unwrap()).collect();
        assert!(scope.room_for_snapshot().is_err());
        drop(rooms);
        assert!(scope.room_for_snapshot().is_ok());
    }

    #[tokio::test]
    async fn nothing_begins_after_the_end() {
        let home = tempfile::tempdir().unwrap();
        let scope = scope(&home, 3);
        drop(scope.begin_call().await.unwrap());
        assert_eq!(scope.end().await, Vec::<String>::new());
        assert!(matches!(scope.begin_call().await, Err(ScopeError::Closing)));
    }
}
