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

pub use error::ApplyError;

use crate::{
    beneath::{Root, look_at},
    review::Review,
};
use execute::{Checkpoint, Executor};
use journal::{Action, Entry, Journal, Phase, Place};
use plan::{Plan, Step};
use rustix::fd::AsFd;
use staging::Staging;
use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path};

/// What became of an apply that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// All of its changes are in the project.
    Finished,
    /// None of its changes are in the project.
    Undone,
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
    let about = plan.root.directory(b"").and_then(|root| look_at(root.as_fd(), b""));
    let mut journal = Journal {
        root: plan.root.path().as_os_str().as_bytes().to_vec(),
        inode: about.map_err(io::Error::from).map_err(in_root("look at"))?.inode,
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
        None => Ok(()),
        Some(path) => Err(ApplyError::Changed(path)),
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
    let about = root.directory(b"").and_then(|root| look_at(root.as_fd(), b""));
    if about.map_err(io::Error::from).map_err(root_error("look at", b"."))?.inode != journal.inode {
        return Err(ApplyError::OtherRoot(path.to_owned()));
    }
    match journal.phase {
        Phase::Staging => clean(&root, &place, &journal, checkpoint).map(|()| Some(Recovered::Undone)),
        Phase::Cleaning => clean(&root, &place, &journal, checkpoint).map(|()| Some(Recovered::Finished)),
        Phase::Applying | Phase::Undoing => {
            let conflict = run(&root, &place, journal, checkpoint)?;
            Ok(Some(if conflict.is_some() { Recovered::Undone } else { Recovered::Finished }))
        }
    }
}

/// Writes all new contents to the staging directory, and completes the journal.
fn stage(review: &Review, plan: &Plan, journal: &mut Journal, checkpoint: Checkpoint<'_>) -> Result<(), ApplyError> {
    let staging = Staging::create(&plan.root, &journal.staging).map_err(root_error("make a directory in", b"."))?;
    for (number, (path, step)) in plan.steps.iter().enumerate() {
        stop(checkpoint)?;
        let inode = staging.prepare(number, path, step, review, &plan.root);
        let inode = inode.map_err(root_error("write", path))?.unwrap_or(0);
        let action = match step {
            Step::Remove(was) => Action::Remove(was.clone()),
            Step::RemoveDirectory => Action::RemoveDirectory,
            Step::Create { .. } => Action::Create { inode },
            Step::Replace { was, .. } => Action::Replace { inode, was: was.clone() },
            Step::Mode { from, to } => Action::Mode { from: *from, to: *to },
        };
        journal.steps.push(Entry { path: path.clone(), action });
    }
    staging.sync().map_err(root_error("sync", b"."))
}

/// Does the steps, or undoes them after a conflict, whose path it returns.
fn run(
    root: &Root,
    place: &Place,
    mut journal: Journal,
    checkpoint: Checkpoint<'_>,
) -> Result<Option<Vec<u8>>, ApplyError> {
    let in_journal = |step| journal_error(step, place.directory());
    let staging = Staging::open(root, &journal.staging).map_err(root_error("open", &journal.staging))?;
    let Some(staging) = staging else {
        // Only the user can have removed it. What was done stays.
        place.remove().map_err(in_journal("remove"))?;
        return Ok((journal.phase == Phase::Undoing).then(Vec::new));
    };
    let name = journal.staging.clone();
    let mut executor = Executor { root, name: &name, staging: &staging, checkpoint };
    let mut conflict = None;
    if journal.phase == Phase::Applying {
        conflict = match executor.all(&journal.steps) {
            Err(ApplyError::File { path, error, step }) => {
                // The file system refuses a step: none is to stay.
                journal.phase = Phase::Undoing;
                place.write(&journal).map_err(in_journal("write"))?;
                executor.undo(&journal.steps)?;
                clean(root, place, &journal, executor.checkpoint)?;
                return Err(ApplyError::File { step, path, error });
            }
            done => done?,
        };
        if conflict.is_some() {
            journal.phase = Phase::Undoing;
            place.write(&journal).map_err(in_journal("write"))?;
        }
    }
    if journal.phase == Phase::Undoing {
        executor.check()?;
        executor.undo(&journal.steps)?;
        clean(root, place, &journal, executor.checkpoint)?;
        return Ok(Some(conflict.unwrap_or_default()));
    }
    staging.sync().map_err(root_error("sync", b"."))?;
    journal.phase = Phase::Cleaning;
    place.write(&journal).map_err(in_journal("write"))?;
    clean(root, place, &journal, checkpoint)?;
    Ok(None)
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
