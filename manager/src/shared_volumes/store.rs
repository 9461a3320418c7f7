//! Makes and removes the directories of volumes. What has the ID of a volume is complete: it is made under another
//! name and renamed, and renamed again before it is removed.

use super::{SharedVolumeId, content};
use crate::manager::Manager;
use rustix::process::geteuid;
use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
};

/// Prefix of the name of a directory that is being made.
const UNFINISHED: &str = ".new-";
/// Prefix of the name of a directory that is being removed.
const REMOVED: &str = ".gone-";
/// The first of the users that volumes belong to, of 2^28. No user database has them, and no other part of sandboxvm.
const FIRST_USER: u32 = 0x7000_0000;
/// Whose volumes are where a container has no such users. Volumes are then kept apart by mounts alone.
const NOBODY: u32 = 65_534;

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
                let user = FIRST_USER | number & 0x0fff_ffff;
                let own = |user| {
                    [&unfinished].into_iter().chain(&parts).try_for_each(|path| chown(path, Some(user), Some(user)))
                };
                own(user).or_else(|_| own(NOBODY))?;
            }
            fs::rename(&unfinished, self.home.shared_volume(id))
        };
        make().map_err(|source| {
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
    /// Blocks.
    ///
    /// # Errors
    /// When the directory of the volumes cannot be listed.
    pub fn sweep_shared_volumes(&self, program: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(self.home.shared_volumes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(REMOVED) || name.starts_with(UNFINISHED) {
                // What is not removed now is removed by the next sweep.
                let _ = content::empty(program, &entry.path());
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}

impl Manager {
    /// Returns the path of the directory of a volume.
    #[must_use]
    pub fn shared_volume_path(&self, id: &SharedVolumeId) -> PathBuf {
        self.home.shared_volume(id)
    }
}
