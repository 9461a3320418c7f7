//! Does the steps of a journal, or undoes them. Owns what makes each of them repeatable: it looks at what
//! is there and continues from it, so a step may be killed at every point and done again. It changes
//! names only within the project and its staging directory, by descriptors of their directories.

use super::{
    error::ApplyError,
    host::{self, Found},
    journal::{Action, Entry},
    staging::{Staging, new_file, old_file},
};
use crate::{
    beneath::{Root, look_at, split},
    index::Kind,
    review::layer::State,
};
use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, chmod, unlinkat},
    io::Errno,
};

/// Called between system calls that change something. Returning false stops the process there, as a
/// kill would.
pub(super) type Checkpoint<'a> = &'a mut dyn FnMut() -> bool;

pub(super) struct Executor<'a> {
    pub(super) root: &'a Root,
    pub(super) name: &'a [u8],
    pub(super) staging: &'a Staging,
    pub(super) checkpoint: Checkpoint<'a>,
}

/// Whether the host was as expected.
enum Outcome {
    Done,
    Conflict,
}

impl Executor<'_> {
    /// Does all steps. Returns the path of the first one that found a conflict.
    pub(super) fn all(&mut self, steps: &[Entry]) -> Result<Option<Vec<u8>>, ApplyError> {
        for (number, step) in steps.iter().enumerate() {
            self.check()?;
            match self.step(number, step).map_err(failed("apply", &step.path))? {
                Ok(Outcome::Done) => {}
                Ok(Outcome::Conflict) => return Ok(Some(step.path.clone())),
                Err(killed) => return Err(killed),
            }
        }
        Ok(None)
    }

    /// Undoes all steps that were done, and returns the paths of those that could not be undone.
    pub(super) fn undo(&mut self, steps: &[Entry]) -> Result<Vec<Vec<u8>>, ApplyError> {
        let mut left = Vec::new();
        for (number, step) in steps.iter().enumerate().rev() {
            self.check()?;
            if !self.undo_step(number, step).unwrap_or(false) {
                left.push(step.path.clone());
            }
        }
        Ok(left)
    }

    /// Removes the staging directory after undoing. What is not the staged file is the host's and stays, with
    /// the directory. Returns true if that was removed.
    pub(super) fn clean(&mut self, steps: &[Entry]) -> Result<bool, Errno> {
        for (number, step) in steps.iter().enumerate() {
            let (Action::Create { inode, new } | Action::Replace { inode, new, .. }) = &step.action else { continue };
            let name = new_file(number);
            if self.is_own(&name, *inode)? && self.is_staged(&name, new)? {
                self.staging.unlink(&name)?;
            }
        }
        match unlinkat(self.root.directory(b"")?, self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Returns how many steps the project shows as done.
    pub(super) fn count_done(root: &Root, steps: &[Entry]) -> Result<u64, Errno> {
        let mut done = 0;
        for step in steps {
            let found = host::look(root, &step.path)?;
            done += u64::from(match (&step.action, &found) {
                (Action::Remove(_) | Action::RemoveDirectory, found) => *found == Found::Nothing,
                (Action::Create { new, .. } | Action::Replace { new, .. }, Found::File(file)) => {
                    file.state.has_same_content(new)
                }
                (Action::Mode { to, .. }, Found::File(file)) => file.state.mode == *to,
                _ => false,
            });
        }
        Ok(done)
    }

    pub(super) fn check(&mut self) -> Result<(), ApplyError> {
        if (self.checkpoint)() { Ok(()) } else { Err(ApplyError::Killed) }
    }

    fn step(&mut self, number: usize, step: &Entry) -> Result<Result<Outcome, ApplyError>, Errno> {
        let (above, name) = split(&step.path);
        let directory = match self.root.directory(above) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                // The step may be done, and the directory was moved or removed since.
                let (new, old) = (new_file(number), old_file(number));
                let is_done = match &step.action {
                    Action::RemoveDirectory => true,
                    Action::Remove(was) => self.staging.look(&old)?.is_some() && self.is_staged(&old, was)?,
                    Action::Create { .. } => self.staging.look(&new)?.is_none(),
                    Action::Replace { inode, was, .. } => {
                        self.is_exchanged(&new, *inode)? && self.is_staged(&new, was)?
                    }
                    Action::Mode { .. } => false,
                };
                return Ok(Ok(if is_done { Outcome::Done } else { Outcome::Conflict }));
            }
            Err(errno) => return Err(errno),
        };
        let (new, old) = (new_file(number), old_file(number));
        let is_there = |result: Result<(), Errno>| match result {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR | Errno::NOTEMPTY) => Ok(false),
            Err(errno) => Err(errno),
        };
        let outcome = |is_right| Ok(Ok(if is_right { Outcome::Done } else { Outcome::Conflict }));
        match &step.action {
            Action::Remove(was) => {
                if self.staging.look(&old)?.is_none()
                    && !is_there(self.staging.take(&directory, name, &old, RenameFlags::NOREPLACE))?
                {
                    return outcome(false);
                }
                if let Err(killed) = self.check() {
                    return Ok(Err(killed));
                }
                outcome(self.is_staged(&old, was)?)
            }
            Action::RemoveDirectory => {
                if self.staging.look(&old)?.is_none()
                    && !is_there(self.staging.take(&directory, name, &old, RenameFlags::NOREPLACE))?
                {
                    return outcome(true);
                }
                if let Err(killed) = self.check() {
                    return Ok(Err(killed));
                }
                if !self.is_empty_directory(&old)? {
                    // The host has files in it that the sandbox never had: it stays.
                    return outcome(is_there(self.staging.give(&old, &directory, name, RenameFlags::NOREPLACE))?);
                }
                outcome(true)
            }
            Action::Create { .. } => {
                if self.staging.look(&new)?.is_none() {
                    return outcome(true);
                }
                outcome(is_there(self.staging.give(&new, &directory, name, RenameFlags::NOREPLACE))?)
            }
            Action::Replace { inode, was, .. } => {
                if !self.is_exchanged(&new, *inode)?
                    && !is_there(self.staging.give(&new, &directory, name, RenameFlags::EXCHANGE))?
                {
                    return outcome(false);
                }
                if let Err(killed) = self.check() {
                    return Ok(Err(killed));
                }
                outcome(self.is_staged(&new, was)?)
            }
            Action::Mode { from, to } => match self.open(&directory, name)? {
                Some((file, mode)) if mode == *from || mode == *to => {
                    change_mode(&file, *to)?;
                    outcome(true)
                }
                _ => outcome(false),
            },
        }
    }

    /// Undoes a step if it was done. Returns false if it cannot be undone.
    fn undo_step(&mut self, number: usize, step: &Entry) -> Result<bool, Errno> {
        let (above, name) = split(&step.path);
        let (new, old) = (new_file(number), old_file(number));
        let is_done = match &step.action {
            Action::Remove(_) | Action::RemoveDirectory => self.staging.look(&old)?.is_some(),
            Action::Create { .. } => self.staging.look(&new)?.is_none(),
            Action::Replace { inode, .. } => self.is_exchanged(&new, *inode)?,
            Action::Mode { .. } => true,
        };
        if !is_done {
            return Ok(true);
        }
        let directory = match self.root.directory(above) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                // Otherwise what the host had is in the staging directory.
                return Ok(matches!(step.action, Action::Create { .. } | Action::Mode { .. }));
            }
            Err(errno) => return Err(errno),
        };
        let is_there = |inode: u64| match look_at(directory.as_fd(), name) {
            Ok(about) => Ok(about.inode == inode),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        };
        match &step.action {
            Action::Remove(_) | Action::RemoveDirectory => {
                self.staging.give(&old, &directory, name, RenameFlags::NOREPLACE)?;
            }
            Action::Create { inode, new: state } => {
                if !is_there(*inode)? {
                    return Ok(true);
                }
                if !self.has(&step.path, state)? {
                    return Ok(false);
                }
                self.staging.take(&directory, name, &new, RenameFlags::NOREPLACE)?;
                let is_right = match state.kind {
                    Kind::Directory => self.is_empty_directory(&new)?,
                    _ => self.is_staged(&new, state)?,
                };
                if !is_right {
                    // The host wrote to it, or put files into it: it stays.
                    self.staging.give(&new, &directory, name, RenameFlags::NOREPLACE)?;
                    return Ok(false);
                }
            }
            Action::Replace { inode, new: state, .. } => {
                if !is_there(*inode)? || !self.has(&step.path, state)? {
                    return Ok(false);
                }
                self.staging.give(&new, &directory, name, RenameFlags::EXCHANGE)?;
                if !self.is_staged(&new, state)? {
                    self.staging.give(&new, &directory, name, RenameFlags::EXCHANGE)?;
                    return Ok(false);
                }
            }
            Action::Mode { from, to } => {
                if let Some((file, _)) = self.open(&directory, name)?.filter(|(_, mode)| mode == to) {
                    change_mode(&file, *from)?;
                }
            }
        }
        Ok(true)
    }

    /// Returns true if the staged file `name` is in its place, and the old one here.
    fn is_exchanged(&self, name: &[u8], inode: u64) -> Result<bool, Errno> {
        Ok(self.staging.look(name)?.is_some_and(|about| about.inode != inode))
    }

    /// Returns true if `name` in the staging directory is the staged file.
    fn is_own(&self, name: &[u8], inode: u64) -> Result<bool, Errno> {
        Ok(self.staging.look(name)?.is_some_and(|about| about.inode == inode))
    }

    /// Returns true if a file of the staging directory has this content.
    fn is_staged(&self, name: &[u8], state: &State) -> Result<bool, Errno> {
        self.has(&[self.name, b"/", name].concat(), state)
    }

    fn has(&self, path: &[u8], state: &State) -> Result<bool, Errno> {
        Ok(match host::look(self.root, path)? {
            Found::File(found) => found.state.has_same_content(state),
            _ => false,
        })
    }

    fn is_empty_directory(&self, name: &[u8]) -> Result<bool, Errno> {
        let directory = match self.root.directory(&[self.name, b"/", name].concat()) {
            Ok(directory) => directory,
            // Something else took the place of the directory.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        for item in Dir::new(directory)? {
            if !matches!(item?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a file or directory of the project for [`change_mode`], and returns its permissions.
    fn open(&self, directory: &OwnedFd, name: &[u8]) -> Result<Option<(OwnedFd, u32)>, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let about = look_at(file.as_fd(), b"")?;
        Ok(match about.kind {
            rustix::fs::FileType::RegularFile => Some((file, about.mode & 0o777)),
            rustix::fs::FileType::Directory => Some((file, about.mode & 0o1777)),
            _ => None,
        })
    }
}

/// Changes the permissions of a file that is open as a path: it may be unreadable.
fn change_mode(file: &OwnedFd, mode: u32) -> Result<(), Errno> {
    chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode))
}

fn failed(step: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ApplyError {
    let path = path.to_vec();
    move |errno| ApplyError::File { step, path, error: errno.into() }
}
