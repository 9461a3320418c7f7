//! Control groups made ahead, so that a start does not wait for one: empty ones, each with a symbolic link to it in the home's
//! `groups/`, `<place>.<number>`. Taking one is a rename of the link into the sandbox's directory, which hands it to one
//! taker alone and writes it down in one step. Filled after a start by the process that started it.
//!
//! `<place>` stands for where in the hierarchy the maker is: a group in another service's part would be ended with that.

use super::{Group, LINK, making, place, target};
use crate::{
    directory::{DirectoryError, SandboxDirectory},
    home::Home,
    host::hex,
};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with, unlinkat};
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

/// As many as a host of the usual size starts at a time.
const SLOTS: usize = 4;
/// Begins the name of a link to a group that is being made.
const NEW: &str = "new";

/// Where this process is, as the beginning of a link's name. Looked up once: a process that is moved later hands out groups
/// of where it was, which work as well.
fn place_name() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| Some(hex(&Sha256::digest(place::own_unified()?)[..6]))).as_deref()
}

/// Moves the link to a group into `directory`. False when there is none.
pub(super) fn take_into(home: &Home, directory: &SandboxDirectory) -> bool {
    let Some(place) = place_name() else { return false };
    (0..SLOTS).any(|slot| {
        let from = home.groups().join(format!("{place}.{slot}"));
        renameat_with(CWD, &from, directory.fd(), LINK, RenameFlags::NOREPLACE).is_ok()
    })
}

/// Makes what is missing, unless another process is doing that. Where no group can be made, none is.
pub(crate) fn fill(home: &Home) -> Result<(), DirectoryError> {
    let (Some(place), Some(groups)) = (place_name(), lock(home)?) else { return Ok(()) };
    remove_links(home, groups.as_fd(), |name| name.starts_with(NEW) || is_dangling(groups.as_fd(), name))?;
    for slot in 0..SLOTS {
        let name = format!("{place}.{slot}");
        if target(groups.as_fd(), &name).is_some() {
            continue;
        }
        // The link first, under another name: a group that nothing names would stay for ever.
        let fail = |error| DirectoryError::new("link", home.groups().join(&name), error);
        let Some(path) = making::new_path() else { return Ok(()) };
        let being_made = format!("{NEW}.{slot}");
        rustix::fs::symlinkat(&path, &groups, &being_made).map_err(fail)?;
        if making::make(&path).is_err() {
            return remove_links(home, groups.as_fd(), |name| name == being_made);
        }
        renameat_with(&groups, &being_made, &groups, &name, RenameFlags::NOREPLACE).map_err(fail)?;
    }
    Ok(())
}

/// Bounds all of them again.
pub(super) fn renew(home: &Home) {
    for entry in fs::read_dir(home.groups()).into_iter().flatten().flatten() {
        // One that was taken meanwhile is bounded by its taker; one that does not exist is made again by the next filler.
        if let Some(group) = fs::read_link(entry.path()).ok().and_then(|path| Group::at(&path)) {
            let _ = making::make(group.path());
        }
    }
}

/// Removes all of them: for a home that may not be used again soon.
pub(crate) fn drain(home: &Home) -> Result<(), DirectoryError> {
    match lock(home)? {
        Some(groups) => remove_links(home, groups.as_fd(), |_| true),
        None => Ok(()),
    }
}

/// `None` while another process fills or drains.
fn lock(home: &Home) -> Result<Option<OwnedFd>, DirectoryError> {
    let path = home.groups();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fail = |error| DirectoryError::new("lock", &path, error);
    let groups = open(&path, flags, Mode::empty()).map_err(fail)?;
    match flock(&groups, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(groups)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(fail(error)),
    }
}

fn is_dangling(groups: BorrowedFd<'_>, name: &str) -> bool {
    target(groups, name).is_some_and(|path| Group::at(&path).is_none())
}

/// Removes those links with their groups. A taker may be quicker, and then its link is not touched. The link goes last, out of
/// takers' sight: a group that nothing names would stay.
fn remove_links(home: &Home, groups: BorrowedFd<'_>, which: impl Fn(&str) -> bool) -> Result<(), DirectoryError> {
    let path = home.groups();
    let entries = fs::read_dir(&path).map_err(|error| DirectoryError::new("list", &path, error))?;
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| which(name)) {
        let going = if name.starts_with(NEW) { name.clone() } else { format!("{NEW}.{name}") };
        if going != name && renameat_with(groups, &name, groups, &going, RenameFlags::NOREPLACE).is_err() {
            continue;
        }
        if target(groups, &going).is_none_or(|group| Group::remove(&group)) {
            // Gone already where the home is being removed.
            let _ = unlinkat(groups, &going, AtFlags::empty());
        }
    }
    Ok(())
}
