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
    review::layer::State,
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{Dir, Mode, OFlags, RenameFlags, fchmod},
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

    /// Undoes all steps that were done.
    pub(super) fn undo(&mut self, steps: &[Entry]) -> Result<(), ApplyError> {
        for (number, step) in steps.iter().enumerate().rev() {
            self.check()?;
            self.undo_step(number, step).map_err(failed("undo the change of", &step.path))?;
        }
        Ok(())
    }

    pub(super) fn check(&mut self) -> Result<(), ApplyError> {
        if (self.checkpoint)() { Ok(()) } else { Err(ApplyError::Killed) }
    }

    fn step(&mut self, number: usize, step: &Entry) -> Result<Result<Outcome, ApplyError>, Errno> {
        let (above, name) = split(&step.path);
        let directory = match self.root.directory(above) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                // A directory that was to be removed may be gone with all that is in it.
                let is_gone =
                    matches!(step.action, Action::RemoveDirectory) || self.staging.look(&old_file(number))?.is_some();
                return Ok(Ok(if is_gone { Outcome::Done } else { Outcome::Conflict }));
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
            Action::Replace { inode, was } => {
                let is_exchanged = self.staging.look(&new)?.is_some_and(|about| about.inode != *inode);
                if !is_exchanged && !is_there(self.staging.give(&new, &directory, name, RenameFlags::EXCHANGE))? {
                    return outcome(false);
                }
                if let Err(killed) = self.check() {
                    return Ok(Err(killed));
                }
                outcome(self.is_staged(&new, was)?)
            }
            Action::Mode { from, to } => match self.open(&directory, name)? {
                Some((file, mode)) if mode == *from || mode == *to => {
                    fchmod(&file, Mode::from_raw_mode(*to))?;
                    outcome(true)
                }
                _ => outcome(false),
            },
        }
    }

    fn undo_step(&mut self, number: usize, step: &Entry) -> Result<(), Errno> {
        let (above, name) = split(&step.path);
        let (new, old) = (new_file(number), old_file(number));
        let directory = match self.root.directory(above) {
            Ok(directory) => directory,
            // Nothing was done below a directory that is not there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) if self.staging.look(&old)?.is_none() => {
                return Ok(());
            }
            Err(errno) => return Err(errno),
        };
        let inode = match look_at(directory.as_fd(), name) {
            Ok(about) => Some(about.inode),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        match &step.action {
            Action::Remove(_) | Action::RemoveDirectory => {
                if self.staging.look(&old)?.is_some() {
                    self.staging.give(&old, &directory, name, RenameFlags::NOREPLACE)?;
                }
            }
            Action::Create { inode: staged } => {
                if self.staging.look(&new)?.is_none() && inode == Some(*staged) {
                    self.staging.take(&directory, name, &new, RenameFlags::NOREPLACE)?;
                    let about = self.staging.look(&new)?;
                    let is_directory = about.is_some_and(|about| about.kind == rustix::fs::FileType::Directory);
                    if is_directory && !self.is_empty_directory(&new)? {
                        // The host put files into it meanwhile: it stays.
                        self.staging.give(&new, &directory, name, RenameFlags::NOREPLACE)?;
                    }
                }
            }
            Action::Replace { inode: staged, .. } => {
                let is_exchanged = self.staging.look(&new)?.is_some_and(|about| about.inode != *staged);
                if is_exchanged && inode == Some(*staged) {
                    self.staging.give(&new, &directory, name, RenameFlags::EXCHANGE)?;
                }
            }
            Action::Mode { from, to } => {
                if let Some((file, _)) = self.open(&directory, name)?.filter(|(_, mode)| mode == to) {
                    fchmod(&file, Mode::from_raw_mode(*from))?;
                }
            }
        }
        Ok(())
    }

    /// Returns true if a file of the staging directory is what the host had.
    fn is_staged(&self, name: &[u8], was: &State) -> Result<bool, Errno> {
        let path = [self.name, b"/", name].concat();
        Ok(match host::look(self.root, &path)? {
            Found::File(found) => found.state.has_same_content(was),
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

    /// Opens a file or directory of the project, and returns its permissions.
    fn open(&self, directory: &OwnedFd, name: &[u8]) -> Result<Option<(OwnedFd, u32)>, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
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

fn failed(step: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ApplyError {
    let path = path.to_vec();
    move |errno| ApplyError::File { step, path, error: errno.into() }
}
