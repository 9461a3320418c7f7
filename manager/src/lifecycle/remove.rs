//! Removes a sandbox at a user's request: ends its machine first, then discards its directory. It takes
//! no change lock, so it does not wait for a fork or a snapshot of the sandbox; these fail instead.

use crate::{
    discard,
    guest::interruption::{self, Interruption},
    home::{
        directory::{DirectoryError, SandboxDirectory},
        names,
    },
    manager::{FindError, Manager},
    vmm::{
        end::{self, EndError},
        lock,
        state::{self, State},
    },
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::ids::SandboxId;
use std::io;

/// Why a sandbox was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The reference names no sandbox.
    #[error("{0}")]
    Find(#[from] FindError),
    /// The sandbox runs, and `force` was not set.
    #[error("cannot remove sandbox {id}: it is {}", .state.word())]
    Live {
        /// The ID of the sandbox.
        id: SandboxId,
        /// The state of the sandbox.
        state: State,
    },
    /// The VMM of the sandbox cannot be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl Manager {
    /// Removes a sandbox with all its files; with `force` it ends a running sandbox first. Works
    /// even if the files of the sandbox are damaged.
    ///
    /// # Errors
    /// Every [`RemoveError`].
    pub fn remove<'a>(&'a self, reference: &'a str, force: bool) -> BoxFuture<'a, Result<SandboxId, RemoveError>> {
        Box::pin(async move {
            let id = self.resolve(reference)?;
            let directory = match SandboxDirectory::open(self.home.sandbox(&id)) {
                Ok(directory) => directory,
                Err(error) if error.is_not_found() => return Err(FindError::Unknown(reference.to_owned()).into()),
                Err(error) => return Err(error.into()),
            };
            let state = state::read(&directory)?;
            if state.is_live() && !force {
                return Err(RemoveError::Live { id, state });
            }
            if state.is_live() {
                interruption::announce(&directory, Interruption::Removed);
            }
            end::now(&self.home, &directory, &id).await?;
            // A shared lock, so that two callers can remove the same sandbox at the same time: one
            // rename succeeds.
            let _no_vmm = lock::try_exclude_vmm(&directory)?;
            let name = names::of(&self.home, &id)?;
            let home = self.home.clone();
            let removed = tokio::task::spawn_blocking({
                let id = id.clone();
                move || discard::discard(&home, directory, &id, name.as_ref())
            });
            removed.await.map_err(|e| DirectoryError::new("remove", self.home.sandbox(&id), io::Error::other(e)))??;
            Ok(id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::example;
    use sandboxvm_protocol::ids::SandboxName;
    use std::fs;

    fn sandbox(manager: &Manager, id: &str) -> SandboxId {
        let record = example(id);
        let directory = SandboxDirectory::create(manager.home.sandbox(&record.id)).unwrap();
        record.write(&directory).unwrap();
        record.id
    }

    #[tokio::test]
    async fn removal_deletes_directory_name_and_trash() {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        let id = sandbox(&manager, "abcdefgh");
        let name = SandboxName::try_from("demo".to_owned()).unwrap();
        names::claim(&manager.home, &name, &id).unwrap();
        assert_eq!(manager.remove("demo", false).await.unwrap(), id);
        for path in [manager.home.sandboxes(), manager.home.names(), manager.home.trash()] {
            assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "{}", path.display());
        }
        assert!(matches!(manager.remove("demo", true).await, Err(RemoveError::Find(FindError::Unknown(_)))));
    }

    #[tokio::test]
    async fn live_sandboxes_need_force_and_damaged_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        let id = sandbox(&manager, "abcdefgh");
        let directory = SandboxDirectory::open(manager.home.sandbox(&id)).unwrap();
        let lock = lock::create(&directory).unwrap();
        let error = manager.remove("abcdefgh", false).await.unwrap_err();
        assert!(error.to_string().contains("cannot remove sandbox abcdefgh"), "{error}");
        drop(lock);
        fs::write(directory.path().join("config.json"), "garbage").unwrap();
        assert!(manager.find("abcdefgh").is_err());
        let (listed, unreadable) = manager.list_with_unreadable().unwrap();
        assert!(listed.is_empty());
        assert!(unreadable.len() == 1 && unreadable[0].id == id, "{unreadable:?}");
        assert!(unreadable[0].error.to_string().contains("is damaged"), "{unreadable:?}");
        manager.remove("abcdefgh", false).await.unwrap();
    }

    #[tokio::test]
    async fn concurrent_removals_both_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        let id = sandbox(&manager, "abcdefgh");
        let first = SandboxDirectory::open(manager.home.sandbox(&id)).unwrap();
        let second = SandboxDirectory::open(manager.home.sandbox(&id)).unwrap();
        discard::discard(&manager.home, first, &id, None).unwrap();
        discard::discard(&manager.home, second, &id, None).unwrap();
    }
}
