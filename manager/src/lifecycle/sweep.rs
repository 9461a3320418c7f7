//! Removes the remains of processes that were killed with SIGKILL: incomplete and half-deleted
//! sandboxes, and sandboxes of a `run` that has ended. Every `create` and `list` sweeps in passing;
//! [`Manager::prune`] also removes sandboxes that have ended, and names without a sandbox.
//!
//! Locks (flock) show what still has an owner, and a sweep may not remove any of that: a maker or a
//! `run` claims its directory as long as it lives, and a VMM holds the lock of its sandbox.

use crate::{
    audit::log::KEPT_FOR,
    create::ready_snapshot,
    discard,
    home::staging,
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
        names,
    },
    lifecycle::paused_to_disk,
    manager::Manager,
    vmm::{group::pool, lock, state},
    volumes, workspace,
};
use sandboxvm_protocol::ids::SandboxId;
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Sandboxes that ended or died, and those of a `run` that has ended.
    pub sandboxes: Vec<SandboxId>,
    /// Number of incomplete or half-deleted directories, and of marks and names without a sandbox.
    pub remains: usize,
    /// What could not be removed.
    pub failures: Vec<SweepFailure>,
}

/// A sandbox, or the remains of one, that could not be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SweepFailure {
    /// The ID of the sandbox.
    pub id: SandboxId,
    /// The error.
    pub reason: String,
}

impl Swept {
    /// Records a failure, so that one sandbox that cannot be removed does not keep the others from
    /// being removed.
    fn note(&mut self, id: &SandboxId, done: Result<(), DirectoryError>) {
        if let Err(error) = done {
            self.failures.push(SweepFailure { id: id.clone(), reason: error.to_string() });
        }
    }
}

/// Removes everything that has no owner.
pub(crate) fn abandoned(home: &Home) -> Result<Swept, DirectoryError> {
    let mut swept = Swept::default();
    let staged = match staging::try_lock(home)? {
        Some(_lock) => entries(&home.staging())?,
        // A maker is about to claim its directory. The next sweep handles staging.
        None => Vec::new(),
    };
    for (id, path) in staged {
        let done = sweep_staged(home, &id, path, &mut swept);
        swept.note(&id, done);
    }
    for (id, _) in entries(&home.ephemeral_marks())? {
        let done = sweep_ephemeral(home, &id, &mut swept);
        swept.note(&id, done);
    }
    swept.remains += volumes::sweep(home)?;
    for (id, path) in entries(&home.trash())? {
        let done = discard::delete(home, &path).map(|()| swept.remains += 1);
        swept.note(&id, done);
    }
    Ok(swept)
}

/// Removes a staged directory, unless its maker still lives.
fn sweep_staged(home: &Home, id: &SandboxId, path: PathBuf, swept: &mut Swept) -> Result<(), DirectoryError> {
    if let Some(directory) = open(path)?
        && directory.try_claim()?
    {
        discard::discard(home, directory, id, None)?;
        swept.remains += 1;
    }
    Ok(())
}

/// Removes a sandbox of a `run` that has ended.
fn sweep_ephemeral(home: &Home, id: &SandboxId, swept: &mut Swept) -> Result<(), DirectoryError> {
    // Staging is checked first: a sandbox moves from there to `sandboxes/`, never back.
    if home.staged(id).exists() {
        return Ok(());
    }
    let Some(directory) = open(home.sandbox(id))? else { return discard::delete_mark(home, id) };
    if directory.try_claim()? && lock::try_exclude_vmm(&directory)?.is_some() {
        let name = names::of(home, id)?;
        discard::discard(home, directory, id, name.as_ref())?;
        swept.sandboxes.push(id.clone());
    }
    Ok(())
}

impl Manager {
    /// Removes the remains of processes that were killed, or ended by a reboot. Sandboxes that do
    /// not belong to a `run` stay, even if they have ended.
    ///
    /// # Errors
    /// When the home cannot be read or files cannot be removed.
    pub fn sweep(&self) -> Result<Swept, DirectoryError> {
        abandoned(&self.home)
    }

    /// Like [`Self::sweep`], and removes every sandbox that does not run, except those that are
    /// paused to disk or that keep changes of a workspace. With `only_say`, reports these sandboxes and does not remove them.
    ///
    /// # Errors
    /// When the home cannot be read or files cannot be removed.
    pub fn prune(&self, only_say: bool) -> Result<Swept, DirectoryError> {
        let mut swept = self.sweep()?;
        for id in self.ids()? {
            let done = self.prune_one(&id, only_say, &mut swept);
            swept.note(&id, done);
        }
        swept.remains += names::sweep(&self.home)?;
        // A log that cannot be read is kept.
        swept.remains += self.prune_trails(KEPT_FOR, only_say).unwrap_or(0);
        // Errors are ignored: without KVM no sandbox can start from a ready snapshot, but they may
        // be of use again.
        swept.remains += ready_snapshot::prune(&self.home, only_say).unwrap_or(0);
        if !only_say {
            pool::drain(&self.home)?;
        }
        Ok(swept)
    }

    fn prune_one(&self, id: &SandboxId, only_say: bool, swept: &mut Swept) -> Result<(), DirectoryError> {
        let Some(directory) = open(self.home.sandbox(id))? else { return Ok(()) };
        // Changes of a workspace exist nowhere else, and an interrupted apply has to be finished: only
        // their user discards them.
        let is_kept = paused_to_disk::is_parked(&directory)
            || workspace::are_stored(&directory)
            || directory.has(workspace::APPLY_JOURNAL);
        if state::read(&directory)?.is_live() || is_kept || !directory.try_claim()? {
            return Ok(());
        }
        let Some(_no_vmm) = lock::try_exclude_vmm(&directory)? else { return Ok(()) };
        if !only_say {
            let name = names::of(&self.home, id)?;
            discard::discard(&self.home, directory, id, name.as_ref())?;
        }
        swept.sandboxes.push(id.clone());
        Ok(())
    }
}

fn open(path: PathBuf) -> Result<Option<SandboxDirectory>, DirectoryError> {
    match SandboxDirectory::open(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn entries(path: &Path) -> Result<Vec<(SandboxId, PathBuf)>, DirectoryError> {
    let entries = fs::read_dir(path).map_err(|e| DirectoryError::new("list", path, e))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| Some((SandboxId::try_from(entry.file_name().into_string().ok()?).ok()?, entry.path())))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{home::staging::new_staged, record::tests::example};

    fn id(text: &str) -> SandboxId {
        SandboxId::try_from(text.to_owned()).unwrap()
    }

    fn manager() -> (tempfile::TempDir, Manager) {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        (dir, manager)
    }

    fn sandbox(home: &Home, text: &str) -> SandboxDirectory {
        let directory = SandboxDirectory::create(home.sandbox(&id(text))).unwrap();
        example(text).write(&directory).unwrap();
        directory
    }

    #[test]
    fn incomplete_sandboxes_without_an_owner_are_swept() {
        let (_dir, manager) = manager();
        let home = &manager.home;
        let being_made = new_staged(home, &id("aaaaaaaa")).unwrap();
        drop(new_staged(home, &id("bbbbbbbb")).unwrap());
        fs::create_dir_all(home.trash().join("cccccccc/x")).unwrap();
        assert_eq!(manager.sweep().unwrap(), Swept { remains: 2, ..Swept::default() });
        assert!(being_made.exists());
        assert!(!home.staged(&id("bbbbbbbb")).exists() && !home.trash().join("cccccccc").exists());
    }

    #[test]
    fn ephemeral_sandboxes_are_swept_once_run_and_vmm_have_ended() {
        let (_dir, manager) = manager();
        let home = &manager.home;
        let run = sandbox(home, "aaaaaaaa");
        run.try_claim().unwrap();
        let vmm = lock::create(&run).unwrap();
        fs::write(home.ephemeral_mark(&id("aaaaaaaa")), "").unwrap();
        fs::write(home.ephemeral_mark(&id("bbbbbbbb")), "").unwrap();
        assert_eq!(manager.sweep().unwrap(), Swept::default(), "the run lives");
        assert!(!home.ephemeral_mark(&id("bbbbbbbb")).exists());
        drop(run);
        assert_eq!(manager.sweep().unwrap(), Swept::default(), "its VMM lives");
        drop(vmm);
        assert_eq!(manager.sweep().unwrap().sandboxes, [id("aaaaaaaa")]);
        assert!(!home.sandbox(&id("aaaaaaaa")).exists() && !home.ephemeral_mark(&id("aaaaaaaa")).exists());
    }

    #[test]
    fn prune_removes_ended_sandboxes_and_sweep_does_not() {
        let (_dir, manager) = manager();
        let home = &manager.home;
        let live = sandbox(home, "aaaaaaaa");
        let _vmm = lock::create(&live).unwrap();
        drop(sandbox(home, "bbbbbbbb"));
        fs::create_dir(home.sandbox(&id("cccccccc"))).unwrap();
        assert_eq!(manager.sweep().unwrap(), Swept::default());
        assert_eq!(manager.prune(true).unwrap().sandboxes.len(), 2);
        assert!(home.sandbox(&id("bbbbbbbb")).exists());
        let mut gone = manager.prune(false).unwrap().sandboxes;
        gone.sort();
        assert_eq!(gone, [id("bbbbbbbb"), id("cccccccc")]);
        assert!(live.exists());
        assert_eq!(fs::read_dir(home.sandboxes()).unwrap().count(), 1);
    }

    #[test]
    fn prune_keeps_sandboxes_paused_to_disk() {
        let (_dir, manager) = manager();
        drop(sandbox(&manager.home, "aaaaaaaa"));
        let resting = manager.find("aaaaaaaa").unwrap();
        resting.park().unwrap();
        resting.park().unwrap();
        assert!(manager.prune(false).unwrap().sandboxes.is_empty() && resting.is_parked());
        resting.unpark().unwrap();
        assert_eq!(manager.prune(false).unwrap().sandboxes, [id("aaaaaaaa")]);
    }

    #[test]
    fn prune_keeps_changes_of_a_workspace() {
        let (_dir, manager) = manager();
        let directory = sandbox(&manager.home, "aaaaaaaa");
        let changes = directory.path().join("workspace/changes.tar");
        fs::create_dir(changes.parent().unwrap()).unwrap();
        fs::write(&changes, "").unwrap();
        drop(directory);
        assert!(manager.prune(false).unwrap().sandboxes.is_empty());
        fs::remove_file(&changes).unwrap();
        let journal = manager.home.sandbox(&id("aaaaaaaa")).join("apply.journal");
        fs::write(&journal, "").unwrap();
        assert!(manager.prune(false).unwrap().sandboxes.is_empty());
        fs::remove_file(journal).unwrap();
        assert_eq!(manager.prune(false).unwrap().sandboxes, [id("aaaaaaaa")]);
    }

    #[test]
    fn prune_continues_after_a_sandbox_that_cannot_be_removed() {
        let (_dir, manager) = manager();
        let home = &manager.home;
        for text in ["aaaaaaaa", "cccccccc"] {
            drop(sandbox(home, text));
        }
        let spoiled = sandbox(home, "bbbbbbbb");
        std::os::unix::fs::symlink("/nowhere/lock", spoiled.path().join(crate::home::directory::LOCK)).unwrap();
        drop(spoiled);
        let swept = manager.prune(false).unwrap();
        assert_eq!(swept.sandboxes.len(), 2, "{swept:?}");
        assert_eq!(swept.failures.len(), 1, "{swept:?}");
        assert_eq!(swept.failures[0].id, id("bbbbbbbb"));
    }
}
