//! Makes, lists and removes volumes. What has the name of a volume is complete: it is made under another
//! name, and renamed.

use super::{
    name::VolumeName,
    users::{self, Unreadable, VolumeUser},
};
use crate::{
    home::{
        directory::DirectoryError,
        flock::Sharing,
        ids::new_id,
        layout::Home,
        locks::{FileLock, LockClass},
    },
    manager::{FindError, Manager},
    mounts::Mounts,
};
use rustix::{
    fs::{CWD, Mode, OFlags, RenameFlags, fsync, openat, renameat_with},
    io::Errno,
};
use sandboxvm_images::{
    template::{DiskSize, TemplateError},
    volume,
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::SystemTime,
};

/// Prefix of the name of a volume that is being made. No volume has such a name.
const UNFINISHED: &str = ".new-";

/// Why a volume cannot be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No volume has this name.
    #[error("no volume has the name {0:?}")]
    Unknown(String),
    /// The name is taken.
    #[error("a volume named {0} already exists")]
    Taken(VolumeName),
    /// Another sandbox has the volume mounted.
    #[error("cannot mount volume {volume}{how}: it is mounted in {holder}, and a volume has one writer or any number of readers",
        how = if *.read_only { " read-only" } else { "" })]
    Mounted {
        /// The volume.
        volume: VolumeName,
        /// The sandbox, and how it has the volume.
        holder: String,
        /// It was to be mounted read-only.
        read_only: bool,
    },
    /// Sandboxes have the volume.
    #[error("cannot remove volume {volume}: {holder} uses it")]
    InUse {
        /// The volume.
        volume: VolumeName,
        /// One of the sandboxes.
        holder: String,
    },
    /// A sandbox, whose record cannot be read, may have the volume.
    #[error("cannot find out which sandboxes have volumes: {0}")]
    Users(#[from] FindError),
    /// The last machine that wrote the volume did not unmount it.
    #[error(
        "cannot mount volume {0} read-only: it was not unmounted cleanly, so its journal must be replayed by a sandbox that mounts it writable"
    )]
    Unclean(VolumeName),
    /// The memory of the snapshot has parts of another version of the volume.
    #[error("cannot restore the snapshot: volume {0} was written or replaced since it was taken")]
    Changed(VolumeName),
    /// The file system cannot be made.
    #[error("cannot make volume {volume}: {source}")]
    Make {
        /// The volume.
        volume: VolumeName,
        /// The cause.
        source: TemplateError,
    },
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The system provided no randomness for an ID.
    #[error("cannot create an ID for the volume: {0}")]
    Entropy(io::Error),
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that it takes on the host.
    pub allocated: u64,
    /// When it was made, if the file system of the home says so.
    pub created_at: Option<SystemTime>,
    /// The sandboxes that have it, also those that do not run.
    pub users: Vec<VolumeUser>,
}

impl Manager {
    /// Size of a volume for which no size is given: 10 GiB.
    ///
    /// # Panics
    /// Never: the size is within the bounds.
    #[must_use]
    pub fn default_volume_size() -> DiskSize {
        DiskSize::try_from(10 << 30).expect("10 GiB lies within the bounds")
    }

    /// Makes an empty volume. Blocks for some 20 ms.
    ///
    /// # Errors
    /// [`VolumeError::Taken`], and those of making files.
    pub fn create_volume(&self, name: &VolumeName, size: DiskSize) -> Result<(), VolumeError> {
        if make(&self.home, name, size)? { Ok(()) } else { Err(VolumeError::Taken(name.clone())) }
    }

    /// Returns all volumes, sorted by name.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn volumes(&self) -> Result<Vec<Volume>, VolumeError> {
        let mut users = users::by_volume(&self.home, Unreadable::Ignored)?;
        let mut volumes = Vec::new();
        for name in names(&self.home)? {
            let users = users.remove(&name).unwrap_or_default();
            volumes.extend(describe(&self.home, name, users)?);
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Returns one volume.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], and those of reading the home.
    pub fn volume(&self, name: &VolumeName) -> Result<Volume, VolumeError> {
        let users = users::by_volume(&self.home, Unreadable::Ignored)?.remove(name).unwrap_or_default();
        describe(&self.home, name.clone(), users)?.ok_or_else(|| unknown(name))
    }

    /// Removes a volume that no sandbox has.
    ///
    /// # Errors
    /// [`VolumeError::InUse`], [`VolumeError::Users`], [`VolumeError::Unknown`], and those of removing files.
    pub fn remove_volume(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let file = open(&self.home, name, OFlags::RDONLY)?.ok_or_else(|| unknown(name))?;
        let path = self.home.volumes().join(name.as_str());
        // A sandbox that is being created has the lock before its record can be found.
        let lock = FileLock::try_on(LockClass::Volume, Sharing::Exclusive, file)
            .map_err(|error| DirectoryError::new("lock", &path, error))?;
        let user = users::by_volume(&self.home, Unreadable::Refused)?.remove(name).into_iter().flatten().next();
        if lock.is_none() || user.is_some() {
            let holder = user.map_or_else(|| "a sandbox".to_owned(), |user| format!("sandbox {}", user.label()));
            return Err(VolumeError::InUse { volume: name.clone(), holder });
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown(name)),
            removed => Ok(removed.map_err(|error| DirectoryError::new("remove", path, error))?),
        }
    }

    /// Removes all volumes that no sandbox has. Returns them.
    ///
    /// # Errors
    /// [`VolumeError::Users`], and those of listing the home and removing files.
    pub fn prune_volumes(&self) -> Result<Vec<Volume>, VolumeError> {
        let mut removed = Vec::new();
        for volume in self.volumes()?.into_iter().filter(|volume| volume.users.is_empty()) {
            match self.remove_volume(&volume.name) {
                Ok(()) => removed.push(volume),
                // Another process was faster.
                Err(VolumeError::InUse { .. } | VolumeError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

fn unknown(name: &VolumeName) -> VolumeError {
    VolumeError::Unknown(name.to_string())
}

/// Makes the volumes among `mounts` that do not exist. Blocks.
pub(crate) fn ensure(home: &Home, mounts: &Mounts) -> Result<(), VolumeError> {
    for volume in mounts.volumes() {
        if !home.volumes().join(volume.name.as_str()).exists() {
            // Another process may make it at the same time.
            make(home, volume.name, Manager::default_volume_size())?;
        }
    }
    Ok(())
}

/// Removes what killed makers left. Returns the number of files.
pub(crate) fn sweep(home: &Home) -> Result<usize, DirectoryError> {
    let mut removed = 0;
    for name in entries(home)?.into_iter().filter(|name| name.starts_with(UNFINISHED)) {
        let path = home.volumes().join(&name);
        match FileLock::try_named(LockClass::Volume, &path)? {
            // Its maker lives.
            None => continue,
            Some(_lock) => fs::remove_file(&path).map_err(|error| DirectoryError::new("remove", &path, error))?,
        }
        removed += 1;
    }
    Ok(removed)
}

/// Opens the file of a volume. Returns `None` if there is none.
pub(super) fn open(home: &Home, name: &VolumeName, flags: OFlags) -> Result<Option<File>, DirectoryError> {
    let path = home.volumes().join(name.as_str());
    match rustix::fs::open(&path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(DirectoryError::new("open", path, error)),
    }
}

/// Returns false if the name is taken.
fn make(home: &Home, name: &VolumeName, size: DiskSize) -> Result<bool, VolumeError> {
    let directory = home.volumes();
    let id = new_id().map_err(VolumeError::Entropy)?;
    let unfinished = directory.join(format!("{UNFINISHED}{id}"));
    let unfinished = Unfinished::create(&unfinished)?;
    volume::make(unfinished.path, size).map_err(|source| VolumeError::Make { volume: name.clone(), source })?;
    let path = directory.join(name.as_str());
    match renameat_with(CWD, unfinished.path, CWD, &path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(false),
        Err(error) => return Err(DirectoryError::new("create", path, error).into()),
    }
    let fail = |error| DirectoryError::new("sync", &directory, error);
    fsync(File::open(&directory).map_err(|error| DirectoryError::new("open", &directory, error))?).map_err(fail)?;
    Ok(true)
}

/// The file of a volume that is being made. Dropping it removes the file, unless it was renamed.
struct Unfinished<'p> {
    path: &'p Path,
    _lock: FileLock,
}

impl<'p> Unfinished<'p> {
    fn create(path: &'p Path) -> Result<Self, DirectoryError> {
        let fail = |error| DirectoryError::new("create", path, error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| fail(error.into()))?);
        match FileLock::try_on(LockClass::Volume, Sharing::Exclusive, file).map_err(fail)? {
            Some(lock) => Ok(Self { path, _lock: lock }),
            // A sweep was faster, and takes the file for one that was left.
            None => Err(fail(io::ErrorKind::ResourceBusy.into())),
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path);
    }
}

/// Returns `None` if the volume does not exist any more.
fn describe(home: &Home, name: VolumeName, users: Vec<VolumeUser>) -> Result<Option<Volume>, DirectoryError> {
    let path = home.volumes().join(name.as_str());
    let metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DirectoryError::new("examine", path, error)),
    };
    let (size, allocated) = (metadata.len(), metadata.blocks() * 512);
    Ok(Some(Volume { name, size, allocated, created_at: metadata.created().ok(), users }))
}

fn names(home: &Home) -> Result<Vec<VolumeName>, DirectoryError> {
    Ok(entries(home)?.into_iter().filter_map(|name| VolumeName::try_from(name).ok()).collect())
}

fn entries(home: &Home) -> Result<Vec<String>, DirectoryError> {
    let path = home.volumes();
    let entries = fs::read_dir(&path).map_err(|error| DirectoryError::new("list", path, error))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        home::directory::SandboxDirectory,
        mounts::spec::tests::volume,
        record::{SandboxRecord, tests::example},
        volumes::open::open_all,
    };

    fn manager() -> (tempfile::TempDir, Manager) {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        (dir, manager)
    }

    fn name(text: &str) -> VolumeName {
        VolumeName::try_from(text.to_owned()).unwrap()
    }

    fn sandbox_with(manager: &Manager, id: &str, mounts: Mounts) {
        let record = SandboxRecord { mounts, ..example(id) };
        let directory = SandboxDirectory::create(manager.home.sandbox(&record.id)).unwrap();
        record.write(&directory).unwrap();
    }

    #[test]
    fn volumes_are_made_once_listed_and_removed() {
        let (_dir, manager) = manager();
        let size = DiskSize::try_from(64 << 20).unwrap();
        manager.create_volume(&name("b"), size).unwrap();
        manager.create_volume(&name("a"), size).unwrap();
        assert!(matches!(manager.create_volume(&name("a"), size), Err(VolumeError::Taken(_))));
        let volumes = manager.volumes().unwrap();
        assert_eq!(volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(volumes[0].size, size.bytes());
        assert!(volumes[0].allocated < size.bytes() / 4, "{}", volumes[0].allocated);
        manager.remove_volume(&name("a")).unwrap();
        assert!(matches!(manager.remove_volume(&name("a")), Err(VolumeError::Unknown(_))));
        assert!(matches!(manager.volume(&name("a")), Err(VolumeError::Unknown(_))));
        assert_eq!(manager.prune_volumes().unwrap().len(), 1);
        assert_eq!(fs::read_dir(manager.home.volumes()).unwrap().count(), 0);
    }

    #[test]
    fn volumes_of_sandboxes_are_not_removed_whether_they_run_or_not() {
        let (_dir, manager) = manager();
        let mounts = Mounts::new(vec![volume("cache", "/c", false)]).unwrap();
        ensure(&manager.home, &mounts).unwrap();
        ensure(&manager.home, &mounts).unwrap();
        assert_eq!(manager.volume(&name("cache")).unwrap().size, Manager::default_volume_size().bytes());
        // One that is being created has the lock and no record.
        let opened = open_all(&manager.home, &mounts).unwrap();
        let message = manager.remove_volume(&name("cache")).unwrap_err().to_string();
        assert_eq!(message, "cannot remove volume cache: a sandbox uses it");
        drop(opened);
        sandbox_with(&manager, "aaaaaaaa", mounts);
        let message = manager.remove_volume(&name("cache")).unwrap_err().to_string();
        assert_eq!(message, "cannot remove volume cache: sandbox demo uses it");
        assert!(manager.prune_volumes().unwrap().is_empty());
        let users = manager.volume(&name("cache")).unwrap().users;
        assert!(users.len() == 1 && !users[0].is_live && !users[0].read_only, "{users:?}");
    }

    #[test]
    fn no_volume_is_removed_while_a_record_cannot_be_read() {
        let (_dir, manager) = manager();
        let mounts = Mounts::new(vec![volume("cache", "/c", false)]).unwrap();
        ensure(&manager.home, &mounts).unwrap();
        sandbox_with(&manager, "aaaaaaaa", mounts);
        let directory = manager.home.sandboxes().join("aaaaaaaa");
        fs::write(directory.join("config.json"), "{").unwrap();
        let message = manager.remove_volume(&name("cache")).unwrap_err().to_string();
        assert!(message.starts_with("cannot find out which sandboxes have volumes: "), "{message}");
        assert!(message.contains("aaaaaaaa"), "{message}");
        assert!(matches!(manager.prune_volumes(), Err(VolumeError::Users(_))));
        assert_eq!(manager.volumes().unwrap().len(), 1);
        fs::remove_dir_all(directory).unwrap();
        assert_eq!(manager.prune_volumes().unwrap().len(), 1);
    }

    #[test]
    fn remains_of_a_killed_maker_are_swept_and_those_of_a_living_one_are_not() {
        let (_dir, manager) = manager();
        let path = manager.home.volumes().join(".new-abcdefgh");
        let making = Unfinished::create(&path).unwrap();
        assert_eq!(sweep(&manager.home).unwrap(), 0);
        // As after a kill: the lock is gone, and the file is not.
        std::mem::forget(making);
        let other = manager.home.volumes().join(".new-zzzzzzzz");
        fs::write(&other, "").unwrap();
        assert_eq!(manager.sweep().unwrap().remains, 1);
        assert!(path.exists() && !other.exists());
        assert!(manager.volumes().unwrap().is_empty());
    }

    #[test]
    fn a_maker_that_fails_leaves_nothing() {
        let (_dir, manager) = manager();
        let path = manager.home.volumes().join("b");
        fs::create_dir(&path).unwrap();
        assert!(matches!(
            manager.create_volume(&name("b"), DiskSize::try_from(64 << 20).unwrap()),
            Err(VolumeError::Taken(_))
        ));
        assert_eq!(entries(&manager.home).unwrap().iter().filter(|name| name.starts_with(UNFINISHED)).count(), 0);
    }
}
