//! A pool of empty control groups that are made ahead, so that a start does not wait for one. For
//! each there is a symbolic link in the home's `groups/`, named `<place>.<number>`. A taker renames
//! the link into the sandbox's directory, which hands the group to exactly one taker and records it
//! in one step. The process that started a sandbox fills the pool afterwards.
//!
//! `<place>` stands for where in the hierarchy the maker is: a group in the part of another service
//! would be ended with that service.

use super::{
    handle::{Group, LINK, target},
    making, place,
};
use crate::home::{
    directory::{DirectoryError, SandboxDirectory},
    flock::Sharing,
    host::hex,
    layout::Home,
    locks::{FileLock, LockClass, directory_file},
};
use rustix::fs::{AtFlags, CWD, RenameFlags, renameat_with, unlinkat};
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
    sync::OnceLock,
};

/// Number of groups in the pool: as many sandboxes as a host of the usual size starts at a time.
const SLOTS: usize = 4;
/// Prefix of the name of a link to a group that is being made or removed.
const NEW: &str = "new";

/// Returns where this process is, as the prefix of a link's name. Determined only once: a process
/// that is moved later hands out groups of its old place, which work as well.
fn place_name() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| Some(hex(&Sha256::digest(place::own_unified()?)[..6]))).as_deref()
}

/// Moves the link to a group into `directory`. Returns false if there is none.
pub(super) fn take_into(home: &Home, directory: &SandboxDirectory) -> bool {
    let Some(place) = place_name() else { return false };
    (0..SLOTS).any(|slot| {
        let from = home.groups().join(format!("{place}.{slot}"));
        renameat_with(CWD, &from, directory.fd(), LINK, RenameFlags::NOREPLACE).is_ok()
    })
}

/// Makes the groups that are missing, unless another process does. Does nothing if no group can be
/// made.
pub(crate) fn fill(home: &Home) -> Result<(), DirectoryError> {
    let (Some(place), Some(groups)) = (place_name(), lock(home)?) else { return Ok(()) };
    remove_links(home, groups.file().as_fd(), |name| {
        name.starts_with(NEW) || is_dangling(groups.file().as_fd(), name)
    })?;
    for slot in 0..SLOTS {
        let name = format!("{place}.{slot}");
        if target(groups.file().as_fd(), &name).is_some() {
            continue;
        }
        // The link is made first, under another name: a group without a link would stay
        // indefinitely.
        let fail = |error| DirectoryError::new("link", home.groups().join(&name), error);
        let Some(path) = making::new_path() else { return Ok(()) };
        let being_made = format!("{NEW}.{slot}");
        rustix::fs::symlinkat(&path, groups.file(), &being_made).map_err(fail)?;
        if making::make(&path).is_err() {
            return remove_links(home, groups.file().as_fd(), |name| name == being_made);
        }
        renameat_with(groups.file(), &being_made, groups.file(), &name, RenameFlags::NOREPLACE).map_err(fail)?;
    }
    Ok(())
}

/// Bounds all groups of the pool again.
pub(crate) fn renew(home: &Home) {
    for entry in fs::read_dir(home.groups()).into_iter().flatten().flatten() {
        // A group that was taken meanwhile is bounded by its taker; one that does not exist is made
        // again by the next filler.
        if let Some(group) = fs::read_link(entry.path()).ok().and_then(|path| Group::at(&path)) {
            let _ = making::make(group.path());
        }
    }
}

/// Removes all groups of the pool, for a home that may not be used again soon.
pub(crate) fn drain(home: &Home) -> Result<(), DirectoryError> {
    match lock(home)? {
        Some(groups) => remove_links(home, groups.file().as_fd(), |_| true),
        None => Ok(()),
    }
}

/// Locks the pool. Returns `None` while another process fills or drains it.
fn lock(home: &Home) -> Result<Option<FileLock>, DirectoryError> {
    let path = home.groups();
    FileLock::try_on(LockClass::Groups, Sharing::Exclusive, directory_file(&path)?)
        .map_err(|error| DirectoryError::new("lock", path, error))
}

fn is_dangling(groups: BorrowedFd<'_>, name: &str) -> bool {
    target(groups, name).is_some_and(|path| Group::at(&path).is_none())
}

/// Removes those links with their groups. If a taker is faster, its link is not touched. The link
/// is renamed first, so that takers do not see it, and removed last, because a group without a link
/// would stay indefinitely.
fn remove_links(home: &Home, groups: BorrowedFd<'_>, which: impl Fn(&str) -> bool) -> Result<(), DirectoryError> {
    let path = home.groups();
    let entries = fs::read_dir(&path).map_err(|error| DirectoryError::new("list", &path, error))?;
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| which(name)) {
        let going = if name.starts_with(NEW) { name.clone() } else { format!("{NEW}.{name}") };
        if going != name && renameat_with(groups, &name, groups, &going, RenameFlags::NOREPLACE).is_err() {
            continue;
        }
        if target(groups, &going).is_none_or(|group| Group::remove(&group)) {
            // The link does not exist any more if the home is being removed.
            let _ = unlinkat(groups, &going, AtFlags::empty());
        }
    }
    Ok(())
}
