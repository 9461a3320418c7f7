//! Deleting a sandbox: out of sight in one step, by renaming its directory into the trash, then file by file. A kill -9
//! in between leaves only what a sweep takes away.

use crate::{
    audit::{Event, Trail},
    cpu_share,
    directory::{DirectoryError, SandboxDirectory},
    end::{self, EndError, Remains},
    ending::{self, Interruption},
    family,
    group::{self, Group},
    home::Home,
    lock,
    manager::{FindError, Manager},
    names,
    state::{self, State},
    supervision,
};
use sandboxvm_protocol::identity::{SandboxId, SandboxName};
use std::{fs, io, path::Path, time::Duration};

/// In a sandbox's directory, the files without which its processes could not be found.
const NAMES_OF_PROCESSES: [&str; 3] = [group::LINK, family::FILE, cpu_share::GROUP];
/// A VMM that was killed is there until its machine is taken down: some 15 ms, on a loaded host more.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Why a sandbox was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error("{0}")]
    Find(#[from] FindError),
    /// It runs, and force was not asked for.
    #[error("cannot remove sandbox {id}: it is {}", .state.word())]
    Live {
        /// Which.
        id: SandboxId,
        /// What it does.
        state: State,
    },
    /// It cannot be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl Manager {
    /// Removes a sandbox with all its files; `force` ends it first when it runs. Works whatever state its files are in.
    ///
    /// # Errors
    /// Every [`RemoveError`].
    pub async fn remove(&self, reference: &str, force: bool) -> Result<SandboxId, RemoveError> {
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
            ending::announce(&directory, Interruption::Removed);
        }
        end::now(&self.home, &directory, &id).await?;
        // Shared, so that two who remove do not hinder each other: one rename succeeds.
        let _no_vmm = lock::try_exclude_vmm(&directory)?;
        let name = names::of(&self.home, &id)?;
        let home = self.home.clone();
        let removed = tokio::task::spawn_blocking({
            let id = id.clone();
            move || discard(&home, directory, &id, name.as_ref())
        });
        removed.await.map_err(|e| DirectoryError::new("remove", self.home.sandbox(&id), io::Error::other(e)))??;
        Ok(id)
    }
}

/// Takes a directory, its name and its mark away. One that is gone already is no error.
pub(crate) fn discard(
    home: &Home,
    mut directory: SandboxDirectory,
    id: &SandboxId,
    name: Option<&SandboxName>,
) -> Result<(), DirectoryError> {
    supervision::forget(&directory);
    let trash = home.trash().join(id.as_str());
    let ended = state::read(&directory).ok();
    match directory.rename_to(trash.clone()) {
        Ok(()) => log_removal(&Trail::of(home, id), ended),
        Err(error) if !error.is_not_found() => return Err(error),
        Err(_) => {}
    }
    if let Some(name) = name {
        names::release(home, name, id)?;
    }
    delete_mark(home, id)?;
    delete(home, &trash)
}

fn log_removal(trail: &Trail, ended: Option<State>) {
    if let Some(reason) = ended.as_ref().and_then(State::end) {
        trail.note_if_any(Event::MachineEnded { reason });
    }
    trail.note_if_any(Event::Removed);
}

pub(crate) fn delete_mark(home: &Home, id: &SandboxId) -> Result<(), DirectoryError> {
    let mark = home.ephemeral_mark(id);
    gone(fs::remove_file(&mark)).map_err(|e| DirectoryError::new("remove", mark, e))
}

/// Deletes a directory tree, which others may be deleting too, after ending what is left of the machine in it. It stays for
/// the next sweep, with what names the machine's processes, while one of those is there.
pub(crate) fn delete(home: &Home, path: &Path) -> Result<(), DirectoryError> {
    let directory = match SandboxDirectory::open(path.to_owned()) {
        Ok(directory) => directory,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    if NAMES_OF_PROCESSES.iter().any(|name| directory.has(name)) {
        let remains = Remains::of(home, &directory);
        remains.kill();
        // While the kernel takes the machine down; its open files do not mind.
        for name in
            directory.names().unwrap_or_default().iter().filter(|name| !NAMES_OF_PROCESSES.contains(&name.as_str()))
        {
            // What else is there goes below.
            let _ = directory.unlink(name);
        }
        if !remains.gone_within(GONE_WITHIN) || !cpu_share::release(&directory) || !Group::release(&directory) {
            return Ok(());
        }
    }
    gone(fs::remove_dir_all(path)).map_err(|e| DirectoryError::new("remove", path, e))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::example;

    fn sandbox(manager: &Manager, id: &str) -> SandboxId {
        let record = example(id);
        let directory = SandboxDirectory::create(manager.home.sandbox(&record.id)).unwrap();
        record.write(&directory).unwrap();
        record.id
    }

    #[tokio::test]
    async fn nothing_of_a_removed_sandbox_is_left() {
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
    async fn a_live_one_needs_force_and_a_damaged_one_does_not_resist() {
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
    async fn of_two_who_remove_both_are_content() {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        let id = sandbox(&manager, "abcdefgh");
        let first = SandboxDirectory::open(manager.home.sandbox(&id)).unwrap();
        let second = SandboxDirectory::open(manager.home.sandbox(&id)).unwrap();
        discard(&manager.home, first, &id, None).unwrap();
        discard(&manager.home, second, &id, None).unwrap();
    }
}
