//! Opens the volumes of a machine, with their locks. A machine whose volume was not opened here may not
//! start.

use super::{name::VolumeName, store, store::VolumeError, users};
use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        flock::Sharing,
        layout::Home,
        locks::{FileLock, LockClass},
    },
    mounts::{MountedVolume, Mounts},
};
use rustix::fs::{AtFlags, CWD, OFlags, fstat, statat};
use sandboxvm_images::file_version::FileVersion;
use std::{fs::File, os::unix::fs::FileExt};

/// Position of `s_feature_incompat` in an ext4 file system, and its bit that says that the journal has to
/// be replayed.
const FEATURES: u64 = 1024 + 0x60;
const NEEDS_RECOVERY: u32 = 4;

/// A volume that is open for a machine. The lock ends when neither this value nor a VMM has the file.
#[derive(Debug)]
pub(crate) struct OpenVolume {
    file: VolumeFile,
    read_only: bool,
}

#[derive(Debug)]
enum VolumeFile {
    Locked(FileLock),
    /// Of a machine that becomes a ready snapshot.
    Blank(File),
}

impl OpenVolume {
    pub(crate) fn file(&self) -> &File {
        match &self.file {
            VolumeFile::Locked(lock) => lock.file(),
            VolumeFile::Blank(file) => file,
        }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }
}

/// Opens the volumes among `mounts`, in the order of the disks of a machine.
pub(crate) fn open_all(home: &Home, mounts: &Mounts) -> Result<Vec<OpenVolume>, VolumeError> {
    mounts.volumes().map(|volume| open(home, volume)).collect()
}

/// Returns empty files in the place of volumes, for a machine that becomes a ready snapshot.
pub(crate) fn blank(directory: &SandboxDirectory, mounts: &Mounts) -> Result<Vec<OpenVolume>, DirectoryError> {
    let blank = |(number, volume): (usize, MountedVolume<'_>)| {
        let file = VolumeFile::Blank(directory.create_file(&format!("volume.{number}"))?);
        Ok(OpenVolume { file, read_only: volume.read_only })
    };
    mounts.volumes().enumerate().map(blank).collect()
}

/// Returns the version of each volume among `mounts`, as the record of a snapshot has it. The caller's
/// machine has them mounted read-only, so no other machine writes them.
pub(crate) fn with_versions(home: &Home, mounts: &Mounts) -> Result<Mounts, VolumeError> {
    mounts.clone().try_with_versions(|name| {
        let file = store::open(home, name, OFlags::RDONLY)?.ok_or_else(|| VolumeError::Unknown(name.to_string()))?;
        version(home, name, &file)
    })
}

fn open(home: &Home, volume: MountedVolume<'_>) -> Result<OpenVolume, VolumeError> {
    let MountedVolume { name, read_only, version: expected } = volume;
    let (flags, sharing) =
        if read_only { (OFlags::RDONLY, Sharing::Shared) } else { (OFlags::RDWR, Sharing::Exclusive) };
    let file = store::open(home, name, flags)?.ok_or_else(|| VolumeError::Unknown(name.to_string()))?;
    let fail = |what, error| DirectoryError::new(what, home.volumes().join(name.as_str()), error);
    let lock = FileLock::try_on(LockClass::Volume, sharing, file).map_err(|error| fail("lock", error))?;
    let Some(lock) = lock else {
        let holder = users::holder(home, name);
        return Err(VolumeError::Mounted { volume: name.clone(), holder, read_only });
    };
    // It may have been removed before it was locked.
    let held = fstat(lock.file()).map_err(|error| fail("examine", error.into()))?;
    let named = statat(CWD, home.volumes().join(name.as_str()), AtFlags::SYMLINK_NOFOLLOW);
    if !named.is_ok_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)) {
        return Err(VolumeError::Unknown(name.to_string()));
    }
    if expected.is_some_and(|expected| !version(home, name, lock.file()).is_ok_and(|now| now == *expected)) {
        return Err(VolumeError::Changed(name.clone()));
    }
    if read_only && needs_recovery(lock.file()).map_err(|error| fail("read", error))? {
        return Err(VolumeError::Unclean(name.clone()));
    }
    Ok(OpenVolume { file: VolumeFile::Locked(lock), read_only })
}

fn version(home: &Home, name: &VolumeName, file: &File) -> Result<FileVersion, VolumeError> {
    let metadata = file.metadata();
    let metadata = metadata.map_err(|error| DirectoryError::new("examine", home.volumes().join(name.as_str()), error));
    Ok(FileVersion::from(&metadata?))
}

/// Returns true if the journal of the file system has to be replayed. A guest that lies here makes the mount
/// in another guest fail.
fn needs_recovery(file: &File) -> std::io::Result<bool> {
    let mut features = [0; 4];
    file.read_exact_at(&mut features, FEATURES)?;
    Ok(u32::from_le_bytes(features) & NEEDS_RECOVERY != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{manager::Manager, mounts::spec::tests::volume};
    use std::io::Write;

    fn home_with_volume() -> (tempfile::TempDir, Manager) {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        let name = VolumeName::try_from("v".to_owned()).unwrap();
        manager.create_volume(&name, (64 << 20).try_into().unwrap()).unwrap();
        (dir, manager)
    }

    fn mounts(read_only: bool) -> Mounts {
        Mounts::new(vec![volume("v", "/v", read_only)]).unwrap()
    }

    #[test]
    fn a_volume_has_one_writer_or_many_readers() {
        let (_dir, Manager { home }) = home_with_volume();
        let refused = |read_only| match open_all(&home, &mounts(read_only)) {
            Err(VolumeError::Mounted { .. }) => true,
            Ok(_) => false,
            Err(error) => panic!("{error}"),
        };
        let writer = open_all(&home, &mounts(false)).unwrap();
        assert!(refused(false) && refused(true));
        drop(writer);
        let readers = [open_all(&home, &mounts(true)).unwrap(), open_all(&home, &mounts(true)).unwrap()];
        assert!(refused(false) && !refused(true));
        // The open file of a reader cannot be written, whatever its VMM does.
        readers[0][0].file().write_all(b"x").unwrap_err();
        // As a VMM has it: the lock stays with the open file.
        let of_vmm = readers[1][0].file().try_clone().unwrap();
        drop(readers);
        assert!(refused(false));
        drop(of_vmm);
        assert!(!refused(false));
    }

    #[test]
    fn a_volume_that_was_not_unmounted_is_not_mounted_read_only() {
        let (_dir, Manager { home }) = home_with_volume();
        let path = home.volumes().join("v");
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut features = [0; 4];
        file.read_exact_at(&mut features, FEATURES).unwrap();
        let unclean = u32::from_le_bytes(features) | NEEDS_RECOVERY;
        file.write_all_at(&unclean.to_le_bytes(), FEATURES).unwrap();
        assert!(matches!(open_all(&home, &mounts(true)), Err(VolumeError::Unclean(_))));
        open_all(&home, &mounts(false)).unwrap();
        file.write_all_at(&features, FEATURES).unwrap();
        open_all(&home, &mounts(true)).unwrap();
    }

    #[test]
    fn a_volume_of_a_snapshot_must_be_the_same_version() {
        let (_dir, Manager { home }) = home_with_volume();
        let of_snapshot = with_versions(&home, &mounts(true)).unwrap();
        open_all(&home, &of_snapshot).unwrap();
        let path = home.volumes().join("v");
        std::thread::sleep(std::time::Duration::from_millis(20));
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", 1 << 20).unwrap();
        assert!(matches!(open_all(&home, &of_snapshot), Err(VolumeError::Changed(_))));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(open_all(&home, &of_snapshot), Err(VolumeError::Unknown(_))));
    }
}
