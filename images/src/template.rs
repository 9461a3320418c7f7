//! The template of a sandbox's writable disk: an empty ext4 file system, made once for each size by
//! mke2fs, and shared read-only by every sandbox with a disk of that size. A template may never be
//! changed.
//!
//! The guest's kernel may be interpreted, so each feature is chosen by its cost there: no journal
//! (a sandbox's disk is dropped or forked, never recovered), no metadata checksums, all metadata in
//! one place, and inode tables that count as zeroed, so that no lazy initialisation runs. UUID,
//! hash seed and times are fixed: the same size gives the same bytes.

use sandboxvm_file_lock::{self as file_lock, Sharing};
use std::{
    fmt,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Part of each template's file name. Increased with every change of the options below, so that old
/// files are never reused.
const FORMAT: u32 = 1;
const UUID: &str = "5bd0f6a2-6b0e-4c5e-9a53-8f2d1f0b5e02";
const HASH_SEED: &str = "5bd0f6a2-6b0e-4c5e-9a53-8f2d1f0b5e03";
const EPOCH: &str = "1735689600";
const FEATURES: &str =
    "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super2,large_file,extra_isize,dir_nlink,uninit_bg";
const TEMPLATE: FileSystem<'static> =
    FileSystem { features: FEATURES, uuid: UUID, hash_seed: HASH_SEED, bytes_per_inode: "32768", extended: "" };
/// mke2fs is in sbin, which is not on every user's PATH.
const MKE2FS: [&str; 3] = ["/usr/sbin/mke2fs", "/sbin/mke2fs", "mke2fs"];

const MIB: u64 = 1 << 20;

/// Size of a writable disk: whole MiB from 64 MiB to 1 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskSize(u64);

/// A number that is not a valid disk size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid disk size of {0} bytes: must be whole MiB between 64 MiB and 1 TiB")]
pub struct DiskSizeError(u64);

impl DiskSize {
    /// Minimum size in bytes.
    pub const MIN: u64 = 64 * MIB;
    /// Maximum size in bytes.
    pub const MAX: u64 = MIB * MIB;
    /// Default size: 2 GiB, of which only written blocks use space.
    pub const DEFAULT: Self = Self(2048 * MIB);

    /// Returns the size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for DiskSize {
    type Error = DiskSizeError;

    fn try_from(bytes: u64) -> Result<Self, DiskSizeError> {
        if (Self::MIN..=Self::MAX).contains(&bytes) && bytes.is_multiple_of(MIB) {
            Ok(Self(bytes))
        } else {
            Err(DiskSizeError(bytes))
        }
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 / MIB)
    }
}

/// Why a template cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// mke2fs is not installed.
    #[error("cannot make a disk: mke2fs is not installed")]
    NoMke2fs,
    /// mke2fs failed.
    #[error("cannot make a disk of {size}: mke2fs failed ({status}): {output}")]
    Mke2fs {
        /// The requested size.
        size: DiskSize,
        /// Exit status of mke2fs.
        status: std::process::ExitStatus,
        /// Error output of mke2fs.
        output: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn path_of(directory: &Path, size: DiskSize) -> PathBuf {
    directory.join(format!("ext4-v{FORMAT}-{}", size.0))
}

/// Opens the template for disks of `size` in `directory`, if it exists.
///
/// # Errors
/// [`TemplateError::Io`].
pub fn existing(directory: &Path, size: DiskSize) -> Result<Option<File>, TemplateError> {
    let path = path_of(directory, size);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Io { what: "open", path, source }),
    }
}

/// Opens the template for disks of `size` in the existing directory `directory`, and makes it if it
/// is missing. Blocks while another process makes one. Making one takes some 20 ms.
///
/// # Errors
/// Every [`TemplateError`].
pub fn open(directory: &Path, size: DiskSize) -> Result<File, TemplateError> {
    if let Some(file) = existing(directory, size)? {
        return Ok(file);
    }
    let path = path_of(directory, size);
    let lock_path = directory.join("lock");
    let io_error = |what, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| TemplateError::Io { what, path, source }
    };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_error("open", &lock_path))?;
    file_lock::wait(Sharing::Exclusive, &lock).map_err(io_error("lock", &lock_path))?;
    if let Some(file) = existing(directory, size)? {
        return Ok(file);
    }
    // Only the holder of the lock uses this name; an existing file was left by a process that was
    // killed.
    let temporary = directory.join("making");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    file.set_len(size.0).map_err(io_error("size", &temporary))?;
    make_file_system(&temporary, size, &TEMPLATE)?;
    file.set_permissions(Permissions::from_mode(0o400)).map_err(io_error("protect", &temporary))?;
    file.sync_all().map_err(io_error("sync", &temporary))?;
    fs::rename(&temporary, &path).map_err(io_error("rename into place", &path))?;
    File::open(&path).map_err(io_error("open", &path))
}

/// Returns the path of the mke2fs that [`open`] would run, if it is installed at a default place.
#[must_use]
pub fn installed_mke2fs() -> Option<&'static Path> {
    MKE2FS.iter().map(Path::new).find(|path| path.is_absolute() && path.is_file())
}

/// What distinguishes one kind of file system from another.
pub(crate) struct FileSystem<'a> {
    pub(crate) features: &'a str,
    pub(crate) uuid: &'a str,
    pub(crate) hash_seed: &'a str,
    /// Bytes of the disk for each inode.
    pub(crate) bytes_per_inode: &'a str,
    /// More of mke2fs's extended options.
    pub(crate) extended: &'a str,
}

/// Makes an ext4 file system in the file at `path`, which has `size` bytes and reads as zeros.
pub(crate) fn make_file_system(path: &Path, size: DiskSize, kind: &FileSystem<'_>) -> Result<(), TemplateError> {
    let FileSystem { features, uuid, hash_seed, bytes_per_inode, extended } = kind;
    for program in MKE2FS {
        let run = Command::new(program)
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", bytes_per_inode, "-m", "0", "-G", "64"])
            .args(["-O", features, "-U", uuid, "-E"])
            .arg(format!(
                "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard,num_backup_sb=0,packed_meta_blocks=1,\
                 root_owner=0:0,hash_seed={hash_seed}{extended}"
            ))
            .arg(path)
            // Neither the defaults of the machine nor the time may affect the result.
            .env_clear()
            .env("MKE2FS_CONFIG", "/dev/null")
            .env("E2FSPROGS_FAKE_TIME", EPOCH)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .output();
        match run {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(TemplateError::Mke2fs { size, status: output.status, output: text });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(TemplateError::Io { what: "run", path: program.into(), source }),
        }
    }
    Err(TemplateError::NoMke2fs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, os::unix::fs::MetadataExt};

    #[test]
    fn sizes_are_whole_mib_within_bounds() {
        assert!(DiskSize::try_from(0).is_err());
        assert!(DiskSize::try_from(DiskSize::MIN + 1).is_err());
        assert!(DiskSize::try_from(DiskSize::MAX + MIB).is_err());
        assert_eq!(DiskSize::try_from(2 << 30), Ok(DiskSize::DEFAULT));
    }

    #[test]
    fn template_is_small_read_only_reproducible_and_made_once() {
        let size = DiskSize::try_from(256 * MIB).unwrap();
        let mut contents = Vec::new();
        for _ in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            let mut file = open(dir.path(), size).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.len(), size.bytes());
            assert!(metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());
            assert_eq!(metadata.mode() & 0o777, 0o400);
            assert_eq!(open(dir.path(), size).unwrap().metadata().unwrap().ino(), metadata.ino());
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            // s_magic, 56 bytes into the superblock.
            assert_eq!(bytes[1024 + 56..1024 + 58], [0x53, 0xef]);
            contents.push(bytes);
        }
        assert!(contents[0] == contents[1], "two templates of one size differ");
    }

    #[test]
    fn remains_of_a_killed_maker_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("making"), vec![0xff; 1 << 20]).unwrap();
        let size = DiskSize::try_from(64 * MIB).unwrap();
        open(dir.path(), size).unwrap();
        assert!(!dir.path().join("making").exists());
    }
}
