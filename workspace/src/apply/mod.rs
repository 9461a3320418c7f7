//! Applies changes to the project, all or none of them. Owns the order of journal, staging and steps, and
//! what a command does about an apply that was killed.
//!
//! ```text
//! Staging ──> Applying ──> Cleaning ──> no journal          killed in Staging: undone
//!                └─ conflict ─> Undoing ──> no journal      killed later: finished, or undone
//! ```

pub(crate) mod concerns;
mod error;
mod execute;
pub(crate) mod host;
mod journal;
mod merge;
pub(crate) mod plan;
mod staging;

pub use error::{ApplyError, Left};
pub use journal::JOURNAL;

use crate::{beneath::Root, review::Review};
use execute::{Checkpoint, Executor};
use journal::{Action, Entry, Identity, Journal, Phase, Place};
use plan::{Plan, Step};
use rustix::fs::fstatvfs;
use staging::Staging;
use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path};

/// What became of an apply that was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// All of its changes are in the project.
    Finished,
    /// None of its changes are in the project.
    Undone,
    /// It was undone, except for these paths.
    NotUndone(Left),
    /// Its staging directory is gone, which only the user can have removed. What was done stays.
    StagingGone {
        /// Number of steps that the project shows.
        done: u64,
        /// Number of all steps.
        steps: u64,
    },
}

/// How steps ended.
enum End {
    Finished,
    /// `conflict` is the path of the first conflict, if one was found now.
    Undone {
        conflict: Option<Vec<u8>>,
        left: Left,
    },
    StagingGone {
        done: u64,
    },
}

/// Does what a plan says, all or nothing. `state` is the directory of the sandbox, which gets the journal.
///
/// # Errors
/// Every [`ApplyError`]. After `Changed`, and after errors before the first step, the project is as it was.
/// After others, [`recover`] continues.
pub fn apply(review: &Review, plan: &Plan, state: &Path) -> Result<(), ApplyError> {
    apply_until(review, plan, state, &mut || true)
}

/// As [`apply`], for tests: stops as a kill would when `checkpoint` returns false.
///
/// # Errors
/// As [`apply`].
#[doc(hidden)]
pub fn apply_until(
    review: &Review,
    plan: &Plan,
    state: &Path,
    checkpoint: &mut dyn FnMut() -> bool,
) -> Result<(), ApplyError> {
    if !plan.conflicts().is_empty() {
        return Err(ApplyError::Conflicts(plan.conflicts().len()));
    }
    let in_journal = |step| journal_error(step, state);
    let place = Place::lock(state).map_err(in_journal("lock"))?;
    if place.read().map_err(in_journal("read"))?.is_some() {
        return Err(ApplyError::Pending);
    }
    if plan.steps.is_empty() {
        return Ok(());
    }
    let in_root = |step| root_error(step, b".");
    let (needed, free) = (plan.needed(), free(&plan.root).map_err(in_root("look at"))?);
    if needed > free {
        return Err(ApplyError::NoSpace { needed, free });
    }
    let mut journal = Journal {
        root: plan.root.path().as_os_str().as_bytes().to_vec(),
        identity: Identity::of(&plan.root).map_err(in_root("look at"))?,
        staging: staging::new_name().map_err(in_root("name a directory in"))?,
        phase: Phase::Staging,
        count: plan.steps.len() as u64,
        steps: Vec::new(),
    };
    place.write(&journal).map_err(in_journal("write"))?;
    stop(checkpoint)?;
    let staged = stage(review, plan, &mut journal, checkpoint);
    if matches!(staged, Err(ApplyError::Killed)) {
        return staged;
    }
    if let Err(error) = staged {
        clean(&plan.root, &place, &journal, checkpoint)?;
        return Err(error);
    }
    stop(checkpoint)?;
    journal.phase = Phase::Applying;
    place.write(&journal).map_err(in_journal("write"))?;
    match run(&plan.root, &place, journal, checkpoint)? {
        End::Finished => Ok(()),
        End::Undone { left, .. } if !left.paths.is_empty() => Err(ApplyError::NotUndone(left)),
        End::Undone { conflict, .. } => Err(ApplyError::Changed(conflict.unwrap_or_default())),
        End::StagingGone { done } => Err(ApplyError::StagingGone { done, steps: plan.steps.len() as u64 }),
    }
}

/// Finishes or undoes an apply that was killed, if there is one.
///
/// # Errors
/// Every [`ApplyError`] except `Conflicts`, `Changed` and `Pending`.
pub fn recover(state: &Path) -> Result<Option<Recovered>, ApplyError> {
    recover_until(state, &mut || true)
}

/// As [`recover`], for tests: stops as a kill would when `checkpoint` returns false.
///
/// # Errors
/// As [`recover`].
#[doc(hidden)]
pub fn recover_until(state: &Path, checkpoint: &mut dyn FnMut() -> bool) -> Result<Option<Recovered>, ApplyError> {
    let in_journal = |step| journal_error(step, state);
    let place = Place::lock(state).map_err(in_journal("lock"))?;
    let Some(journal) = place.read().map_err(in_journal("read"))? else { return Ok(None) };
    let path = Path::new(OsStr::from_bytes(&journal.root));
    let root = Root::open(path).map_err(root_error("open", &journal.root))?;
    if !Identity::of(&root).map_err(root_error("look at", b"."))?.is_same(&journal.identity) {
        return Err(ApplyError::OtherRoot(path.to_owned()));
    }
    match journal.phase {
        Phase::Staging => clean(&root, &place, &journal, checkpoint).map(|()| Some(Recovered::Undone)),
        Phase::Cleaning => clean(&root, &place, &journal, checkpoint).map(|()| Some(Recovered::Finished)),
        Phase::Applying | Phase::Undoing => {
            let steps = journal.steps.len() as u64;
            Ok(Some(match run(&root, &place, journal, checkpoint)? {
                End::Finished => Recovered::Finished,
                End::Undone { left, .. } if !left.paths.is_empty() => Recovered::NotUndone(left),
                End::Undone { .. } => Recovered::Undone,
                End::StagingGone { done } => Recovered::StagingGone { done, steps },
            }))
        }
    }
}

/// Writes all new contents to the staging directory, and completes the journal.
fn stage(review: &Review, plan: &Plan, journal: &mut Journal, checkpoint: Checkpoint<'_>) -> Result<(), ApplyError> {
    let staging = Staging::create(&plan.root, &journal.staging).map_err(root_error("make a directory in", b"."))?;
    for (number, (path, step)) in plan.steps.iter().enumerate() {
        stop(checkpoint)?;
        let staged = staging.prepare(number, path, step, review, &plan.root).map_err(root_error("write", path))?;
        let action = match (step, staged) {
            (Step::Remove(was), _) => Action::Remove(was.clone()),
            (Step::RemoveDirectory, _) => Action::RemoveDirectory,
            (Step::Create { .. }, Some((inode, new))) => Action::Create { inode, new },
            (Step::Replace { was, .. }, Some((inode, new))) => Action::Replace { inode, new, was: was.clone() },
            (Step::Mode { from, to }, _) => Action::Mode { from: *from, to: *to },
            // It was removed immediately.
            (Step::Create { .. } | Step::Replace { .. }, None) => {
                return Err(root_error("write", path)(io::ErrorKind::NotFound.into()));
            }
        };
        journal.steps.push(Entry { path: path.clone(), action });
    }
    staging.sync().map_err(root_error("sync", b"."))
}

/// Does the steps, or undoes them after a conflict.
fn run(root: &Root, place: &Place, mut journal: Journal, checkpoint: Checkpoint<'_>) -> Result<End, ApplyError> {
    let in_journal = |step| journal_error(step, place.directory());
    let staging = Staging::open(root, &journal.staging).map_err(root_error("open", &journal.staging))?;
    let Some(staging) = staging else {
        let done = Executor::count_done(root, &journal.steps).map_err(io::Error::from);
        let done = done.map_err(root_error("look at", b"."))?;
        place.remove().map_err(in_journal("remove"))?;
        return Ok(End::StagingGone { done });
    };
    let name = journal.staging.clone();
    let mut executor = Executor { root, name: &name, staging: &staging, checkpoint };
    let (mut conflict, mut failure) = (None, None);
    if journal.phase == Phase::Applying {
        match executor.all(&journal.steps) {
            // The file system refuses a step: none is to stay.
            Err(error @ ApplyError::File { .. }) => failure = Some(error),
            done => conflict = done?,
        }
        if conflict.is_some() || failure.is_some() {
            journal.phase = Phase::Undoing;
            place.write(&journal).map_err(in_journal("write"))?;
        }
    }
    if journal.phase == Phase::Undoing {
        executor.check()?;
        let left = undo(&mut executor, place, &journal)?;
        return match failure {
            Some(error) if left.paths.is_empty() => Err(error),
            _ => Ok(End::Undone { conflict, left }),
        };
    }
    staging.sync().map_err(root_error("sync", b"."))?;
    journal.phase = Phase::Cleaning;
    place.write(&journal).map_err(in_journal("write"))?;
    clean(root, place, &journal, checkpoint)?;
    Ok(End::Finished)
}

/// Undoes the steps, and removes the journal, and the staging directory unless it has files of the host.
fn undo(executor: &mut Executor<'_>, place: &Place, journal: &Journal) -> Result<Left, ApplyError> {
    let paths = executor.undo(&journal.steps)?;
    executor.check()?;
    let removed = executor.clean(&journal.steps).map_err(io::Error::from);
    let is_removed = removed.map_err(root_error("remove", &journal.staging))?;
    executor.check()?;
    place.remove().map_err(journal_error("remove", place.directory()))?;
    Ok(Left { paths, kept: (!is_removed).then(|| journal.staging.clone()) })
}

/// Removes the staging directory, and then the journal.
fn clean(root: &Root, place: &Place, journal: &Journal, checkpoint: Checkpoint<'_>) -> Result<(), ApplyError> {
    stop(checkpoint)?;
    let opened = Staging::open(root, &journal.staging).map_err(root_error("open", &journal.staging))?;
    if let Some(staging) = opened {
        let removed = staging.remove(root, &journal.staging, journal.count);
        removed.map_err(root_error("remove", &journal.staging))?;
    }
    stop(checkpoint)?;
    place.remove().map_err(journal_error("remove", place.directory()))
}

/// Returns the free space of the file system of a project in bytes.
fn free(root: &Root) -> io::Result<u64> {
    let about = fstatvfs(root.directory(b"")?)?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

fn stop(checkpoint: Checkpoint<'_>) -> Result<(), ApplyError> {
    if checkpoint() { Ok(()) } else { Err(ApplyError::Killed) }
}

fn journal_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.to_owned();
    move |error| ApplyError::Journal { step, path, error }
}

fn root_error(step: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.to_vec();
    move |error| ApplyError::File { step, path, error }
}
