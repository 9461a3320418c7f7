//! Makes and removes the directories of volumes. What has the ID of a volume is complete: it is made under another
//! name and renamed, and renamed again before it is removed.

use super::{SharedVolumeId, content};
use crate::manager::Manager;
use rustix::process::geteuid;
use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    sync::{
        Mutex, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Prefix of the name of a directory that is being made.
const UNFINISHED: &str = ".new-";
/// Prefix of the name of a directory that is being removed.
const REMOVED: &str = ".gone-";
/// The first of the users that volumes belong to, of 2^27. No user database has them, and no VMM, whose users begin at
/// 0x70000000.
const FIRST_USER: u32 = 0x7800_0000;
const USERS: u32 = 0x07ff_ffff;
/// The user of volumes in a container that lacks those users. Only mounts keep volumes apart there.
const SHARED_USER: u32 = 65_534;

/// Held by a sweep: two of them would move the same directories.
static SWEEP: Mutex<()> = Mutex::new(());
/// Set while volumes were removed that no sweep has looked for yet.
static IS_WANTED: AtomicBool = AtomicBool::new(false);

/// Returns the user that a number chooses.
const fn user_of(number: u32) -> u32 {
    FIRST_USER | number & USERS
}

/// Why a volume cannot be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum SharedVolumeError {
    /// A file operation failed.
    #[error("cannot {action} volume {id}: {source}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The volume.
        id: SharedVolumeId,
        /// The system's error.
        source: io::Error,
    },
}

impl Manager {
    /// Makes an empty volume. `number` chooses its user, if this process is root.
    ///
    /// # Errors
    /// When its directory cannot be made, as on a file system without extended attributes of users.
    pub fn create_shared_volume(&self, id: &SharedVolumeId, number: u32) -> Result<(), SharedVolumeError> {
        let all = self.home.shared_volumes();
        let unfinished = all.join(format!("{UNFINISHED}{id}"));
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&all)?;
            DirBuilder::new().mode(0o700).create(&unfinished)?;
            let parts = sandboxvm_share::prepare(&unfinished)?;
            if geteuid().is_root() {
                let user = user_of(number);
                let own = |user| {
                    [&unfinished].into_iter().chain(&parts).try_for_each(|path| chown(path, Some(user), Some(user)))
                };
                own(user).or_else(|_| own(SHARED_USER))?;
            }
            File::open(&unfinished)?.sync_all()?;
            fs::rename(&unfinished, self.home.shared_volume(id))?;
            // The record of the volume is written afterwards: after a loss of power, it is not without it.
            File::open(&all)?.sync_all()
        };
        make().map_err(|source| {
            // No sandbox has written anything there yet.
            let _ = fs::remove_dir_all(&unfinished);
            SharedVolumeError::Io { action: "make", id: id.clone(), source }
        })
    }

    /// Returns the IDs of all volumes.
    #[must_use]
    pub fn shared_volumes(&self) -> Vec<SharedVolumeId> {
        // Without the directory there are none.
        let entries = fs::read_dir(self.home.shared_volumes()).into_iter().flatten().flatten();
        entries.filter_map(|entry| SharedVolumeId::try_from(entry.file_name().into_string().ok()?).ok()).collect()
    }

    /// Removes a volume that no sandbox has. Its files are still there afterwards, and [`Self::sweep_shared_volumes`]
    /// removes them.
    ///
    /// # Errors
    /// When its directory cannot be renamed. It is not an error if there is none.
    pub fn remove_shared_volume(&self, id: &SharedVolumeId) -> Result<(), SharedVolumeError> {
        let gone = self.home.shared_volumes().join(format!("{REMOVED}{id}"));
        match fs::rename(self.home.shared_volume(id), gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SharedVolumeError::Io { action: "remove", id: id.clone(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Gives the directories of volumes that were not completed to the next sweep. No volume may be made meanwhile.
    ///
    /// # Errors
    /// When the directory of the volumes cannot be listed, or one of them cannot be renamed.
    pub fn discard_unfinished_shared_volumes(&self) -> io::Result<()> {
        for name in self.directories_of_volumes(UNFINISHED)? {
            let all = self.home.shared_volumes();
            fs::rename(all.join(format!("{UNFINISHED}{name}")), all.join(format!("{REMOVED}{name}")))?;
        }
        Ok(())
    }

    /// Removes the files of volumes that were removed, by a process of `program`. Blocks, except while another sweep of
    /// this process runs, which then looks once more. Sandboxes made those files: this process removes empty directories
    /// alone.
    ///
    /// # Errors
    /// When the directory of the volumes cannot be listed, or one of them cannot be removed. The others are, and
    /// the next sweep tries again.
    pub fn sweep_shared_volumes(&self, program: &Path) -> io::Result<()> {
        let mut swept = Ok(());
        IS_WANTED.store(true, Ordering::SeqCst);
        while IS_WANTED.load(Ordering::SeqCst) {
            let _only = match SWEEP.try_lock() {
                // A client that removes one volume after the other must not take all threads.
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Poisoned(only)) => only.into_inner(),
                Ok(only) => only,
            };
            IS_WANTED.store(false, Ordering::SeqCst);
            for name in self.directories_of_volumes(REMOVED)? {
                let gone = self.home.shared_volumes().join(format!("{REMOVED}{name}"));
                swept = swept.and(content::clear(program, &gone).and_then(|()| fs::remove_dir(&gone)));
            }
        }
        swept
    }

    /// Returns what follows this prefix in the names of directories.
    fn directories_of_volumes(&self, prefix: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.home.shared_volumes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.strip_prefix(prefix).map(str::to_owned)).collect())
    }
}

impl Manager {
    /// Returns the path of the directory of a volume.
    #[must_use]
    pub fn shared_volume_path(&self, id: &SharedVolumeId) -> PathBuf {
        self.home.shared_volume(id)
    }
}

#[cfg(test)]
mod tests {
    use super::user_of;
    use crate::{manager::Manager, shared_volumes::SharedVolumeId};
    use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
    use sandboxvm_protocol::vmm::users::is_of_vmm;
    use std::{path::Path, process::Command};

    /// A recursive removal of such a tree by this process overflows its stack.
    #[test]
    fn a_sweep_does_not_go_into_what_a_sandbox_made() {
        let home = tempfile::tempdir().unwrap();
        let manager = Manager::open(home.path()).unwrap();
        let id = SharedVolumeId::try_from("0123456789".to_owned()).unwrap();
        manager.create_shared_volume(&id, 1).unwrap();
        let mut at = open(manager.shared_volume_path(&id).join("files"), OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        manager.remove_shared_volume(&id).unwrap();
        // The process that removes files fails, as one does that is killed.
        manager.sweep_shared_volumes(Path::new("/bin/false")).unwrap_err();
        // A process that claims to have removed them is not believed.
        manager.sweep_shared_volumes(Path::new("/bin/true")).unwrap_err();
        let gone = manager.home.shared_volumes().join(".gone-0123456789");
        assert!(gone.join("files/d").exists());
        // Neither does this test.
        assert!(Command::new("rm").arg("-rf").arg(&gone).status().unwrap().success());
        manager.sweep_shared_volumes(Path::new("/bin/false")).unwrap();
    }

    #[test]
    fn a_sweep_leaves_volumes_that_are_being_made() {
        let home = tempfile::tempdir().unwrap();
        let manager = Manager::open(home.path()).unwrap();
        let all = manager.home.shared_volumes();
        std::fs::create_dir_all(all.join(".new-0123456789")).unwrap();
        manager.sweep_shared_volumes(Path::new("/bin/true")).unwrap();
        assert!(all.join(".new-0123456789").exists());
        // As a server does that starts.
        manager.discard_unfinished_shared_volumes().unwrap();
        manager.sweep_shared_volumes(Path::new("/bin/true")).unwrap();
        assert_eq!(std::fs::read_dir(&all).unwrap().count(), 0);
    }

    #[test]
    fn a_sweep_that_finds_another_one_leaves_its_work_to_it() {
        let home = tempfile::tempdir().unwrap();
        let manager = Manager::open(home.path()).unwrap();
        let gone = manager.home.shared_volumes().join(".gone-0123456789");
        std::fs::create_dir_all(&gone).unwrap();
        let other = super::SWEEP.lock().unwrap();
        manager.sweep_shared_volumes(Path::new("/bin/true")).unwrap();
        assert!(gone.exists() && super::IS_WANTED.load(super::Ordering::SeqCst));
        drop(other);
        manager.sweep_shared_volumes(Path::new("/bin/true")).unwrap();
        assert!(!gone.exists());
    }

    #[test]
    fn no_volume_has_the_user_of_a_vmm() {
        for number in [0, 1, 1 << 22, (1 << 22) - 1, 1 << 27, u32::MAX] {
            assert!(!is_of_vmm(user_of(number)) && user_of(number) < 1 << 31, "{number:#x}");
        }
    }
}
