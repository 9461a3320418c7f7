//! The workspace of a sandbox that exists: opens its changes for `changes`, `apply` and `discard`, finishes an apply that was
//! killed, and asks the user. What may be applied, and how, is decided by `sandboxvm_workspace`.

pub(crate) mod show;

use crate::{failure::Failure, options::supervision, output::progress, stdio};
use rustix::fs::{Mode, OFlags};
use sandboxvm_manager::{Sandbox, State, one_line};
use sandboxvm_workspace::{JOURNAL, Recovered, ReviewFiles, recover};
use std::{
    fs::File,
    io::{self, BufRead, IsTerminal, Seek, Write},
};

/// A layer of changes may have this many times the size of the sandbox's disk: files with holes have their full size in it.
const LAYER_TO_DISK: u64 = 2;

/// Finds a sandbox with a workspace, and finishes or undoes an apply that was killed.
pub(crate) fn find(reference: &str) -> Result<Sandbox, Failure> {
    let sandbox = supervision::find(reference)?;
    if sandbox.record().workspace.is_none() {
        let hint = "`sandboxvm run --workspace DIRECTORY` makes a sandbox with one".to_owned();
        return Err(Failure::new(format_args!("sandbox {reference} has no workspace")).hinted(hint));
    }
    settle(&sandbox)?;
    Ok(sandbox)
}

/// Finishes or undoes an apply that was killed, if there is one.
pub(crate) fn settle(sandbox: &Sandbox) -> Result<(), Failure> {
    let directory = sandbox.path();
    if !directory.join(JOURNAL).exists() {
        return Ok(());
    }
    match recover(&directory)? {
        Some(Recovered::Finished) => stdio::notice("finished an interrupted apply"),
        Some(Recovered::Undone) => stdio::notice("undid an interrupted apply: the directory has its old files"),
        Some(Recovered::NotUndone(left)) => {
            stdio::notice(format_args!("undid an interrupted apply, except at {}", one_line(&left.to_string())));
        }
        Some(Recovered::StagingGone { done, steps }) => stdio::notice(format_args!(
            "gave an interrupted apply up: its staging directory is gone; {done} of {steps} steps are done"
        )),
        None => {}
    }
    Ok(())
}

/// Opens the changes of a sandbox: those of now if it runs, and else those that were stored when its command had ended.
pub(crate) async fn files(sandbox: &Sandbox) -> Result<ReviewFiles, Failure> {
    let index = sandbox
        .workspace_index()?
        .ok_or_else(|| Failure::new("cannot read the changes: the sandbox has no index of its workspace"))?;
    let layers = sandbox.workspace_slots()?;
    let changes = match sandbox.state()? {
        State::Creating | State::Running => progress::during("reading the changes", of_running(sandbox)).await?,
        State::Paused => match sandbox.stored_workspace_changes()? {
            Some(stored) => stored,
            None => {
                let hint = format!("sandboxvm resume {}", sandbox.id());
                return Err(Failure::new("cannot read the changes: the sandbox is paused").hinted(hint));
            }
        },
        State::Exited { .. } | State::Dead => sandbox.stored_workspace_changes()?.ok_or_else(|| {
            Failure::new("cannot show the changes: they were not stored before the sandbox ended, and are lost")
        })?,
    };
    Ok(ReviewFiles { index, layers, changes })
}

/// Returns how many bytes a layer of changes may have.
pub(crate) fn max_layer(sandbox: &Sandbox) -> u64 {
    sandbox.record().disk_bytes.saturating_mul(LAYER_TO_DISK)
}

/// Stores the changes of a running sandbox that is about to be stopped: they exist only in its machine.
pub(crate) async fn store(sandbox: &Sandbox) -> Result<(), Failure> {
    if sandbox.record().workspace.is_none() {
        return Ok(());
    }
    match sandbox.state()? {
        State::Creating | State::Running => {}
        State::Paused => {
            let id = sandbox.id();
            let hint = format!("run `sandboxvm resume {id}` first; `sandboxvm rm -f {id}` ends it without its changes");
            return Err(Failure::new("cannot store the changes of the workspace: the sandbox is paused").hinted(hint));
        }
        State::Exited { .. } | State::Dead => return Ok(()),
    }
    let stored = progress::during("storing the changes", sandbox.store_workspace_changes(max_layer(sandbox))).await;
    let hint = || format!("`sandboxvm rm -f {}` ends it without them", sandbox.id());
    stored.map(drop).map_err(|error| Failure::new(error).hinted(hint()))
}

/// Copies the changes of a running sandbox to a file without a name.
async fn of_running(sandbox: &Sandbox) -> Result<File, Failure> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file: File = rustix::fs::open(sandbox.path(), flags, Mode::RUSR | Mode::WUSR)?.into();
    let mut changes = sandbox.workspace_changes(max_layer(sandbox)).await?;
    while let Some(bytes) = changes.next().await? {
        file.write_all(&bytes)?;
    }
    file.rewind()?;
    Ok(file)
}

/// Returns true if the user agrees. Without a terminal the user has to have agreed before, with `--yes`.
pub(crate) fn agrees(question: &str, yes: bool) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new("cannot ask, since there is no terminal").hinted("--yes agrees".to_owned()));
    }
    stdio::tell(&format!("sandboxvm: {question} [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn prune_looks_for_the_journal_that_apply_writes() {
        assert_eq!(sandboxvm_manager::APPLY_JOURNAL, sandboxvm_workspace::JOURNAL);
    }
}
