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
    sync::{Mutex, PoisonError},
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

    /// Removes the files of volumes that were removed, by a process of `program`, and of those that were not completed.
    /// Blocks. Sandboxes made those files: this process removes empty directories alone.
    ///
    /// # Errors
    /// When the directory of the volumes cannot be listed, or one of them cannot be removed. The others are, and
    /// the next sweep tries again.
    pub fn sweep_shared_volumes(&self, program: &Path) -> io::Result<()> {
        let _only = SWEEP.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = match fs::read_dir(self.home.shared_volumes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut swept = Ok(());
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(REMOVED) || name.starts_with(UNFINISHED) {
                let removed = content::clear(program, &entry.path()).and_then(|()| fs::remove_dir(entry.path()));
                swept = swept.and(removed);
            }
        }
        swept
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
    fn no_volume_has_the_user_of_a_vmm() {
        for number in [0, 1, 1 << 22, (1 << 22) - 1, 1 << 27, u32::MAX] {
            assert!(!is_of_vmm(user_of(number)) && user_of(number) < 1 << 31, "{number:#x}");
        }
    }
}
