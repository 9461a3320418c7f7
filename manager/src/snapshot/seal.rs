//! Seals: the checksum of a file of a snapshot when it was made, and the time of its last write.
//!
//! Memory and disk layers are mapped, or read when the guest touches them, and never read as a
//! whole, so that a restore takes no longer when there are more of them. The time shows in one call
//! whether a file is the one that was sealed. Only if the time differs (the file was written to, or
//! copied), all of it is read and the checksum decides. A change of the medium that keeps the time
//! is found by [`Seal::verify`], which always reads the file. A VMM that was taken over and writes
//! into a snapshot of its own machine can neither set the time of a file nor find another content
//! with this checksum.
//!
//! The time is only reliable if the file system also sets it for a write through a mapping, even if
//! the page was written to before the file was sealed. tmpfs does not do that. Files on file
//! systems that are not known to do so are always read.

use crate::home::directory::{DirectoryError, SandboxDirectory};
use rustix::{
    fs::{SeekFrom, fstatfs, seek},
    io::Errno,
};
use sandboxvm_images::identity::FileIdentity;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Why a file is not accepted as the one that was sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// The file does not have its checksum.
    #[error("{} was changed since the snapshot was made: it does not have its checksum", .0.display())]
    Changed(PathBuf),
    /// The file cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The seals of the files in one directory, by file name. Stored as a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<SealedFile>", into = "Vec<SealedFile>")]
pub struct Seals(BTreeMap<String, Seal>);

#[derive(Serialize, Deserialize)]
struct SealedFile {
    file: String,
    #[serde(flatten)]
    seal: Seal,
}

impl Seals {
    pub(crate) fn get(&self, file: &str) -> Option<&Seal> {
        self.0.get(file)
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Adds other seals of the same directory.
    pub(crate) fn extend(&mut self, others: Seals) {
        self.0.extend(others.0);
    }

    /// Forgets the seals of files that are not wanted.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.0.retain(|file, _| is_wanted(file));
    }

    /// Rejects a file that has changed, as far as this can be found out without reading files that
    /// were not written to. Accepts a file without a seal.
    pub(crate) async fn check(&self, directory: &SandboxDirectory, name: &str, file: &File) -> Result<(), SealError> {
        let Some(seal) = self.get(name) else { return Ok(()) };
        match seal.holds(file).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SealError::Changed(directory.path().join(name))),
            Err(error) => Err(directory.error("read", name, error).into()),
        }
    }
}

impl FromIterator<(String, Seal)> for Seals {
    fn from_iter<T: IntoIterator<Item = (String, Seal)>>(seals: T) -> Self {
        Self(seals.into_iter().collect())
    }
}

impl From<Vec<SealedFile>> for Seals {
    fn from(list: Vec<SealedFile>) -> Self {
        list.into_iter().map(|SealedFile { file, seal }| (file, seal)).collect()
    }
}

impl From<Seals> for Vec<SealedFile> {
    fn from(seals: Seals) -> Self {
        seals.0.into_iter().map(|(file, seal)| SealedFile { file, seal }).collect()
    }
}

const PAGE: usize = 4096;
/// Number of bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// Checksum and time of last write of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Time of the last write, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// A BLAKE3 hash in hexadecimal. Its input is the hash of the numbers of all 4 KiB pages that
    /// are not zero, in order, the hash of their contents, and the length of the file in bytes.
    /// Numbers have 64 bits, little-endian.
    pub blake3: String,
}

impl Seal {
    /// Seals a file that no process writes to any more, at least no process that keeps to the
    /// rules. Gives the file a time in the past, so that no later write can leave the time as it
    /// is, but keeps a time that is in the past already, because others may have sealed the file
    /// with it. Syncs the file, so that writes through a mapping are noticed too where
    /// [`times_tell`] is true. Reads the data of the file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let past = SystemTime::now() - Duration::from_secs(1);
        if file.metadata()?.modified()? > past {
            let second = past.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_secs();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(second))?;
        }
        file.sync_data()?;
        let seal = Self { modified_ns: modified(file)?, blake3: checksum(file)? };
        let latest = i64::try_from(past.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_nanos());
        if seal.modified_ns <= latest.map_err(io::Error::other)? && modified(file)? == seal.modified_ns {
            Ok(seal)
        } else {
            Err(io::Error::other("it was written to meanwhile"))
        }
    }

    /// Returns true if the file's time proves that it was not written to since.
    pub(crate) fn is_untouched(&self, file: &File) -> io::Result<bool> {
        Ok(modified(file)? == self.modified_ns && times_tell(file)?)
    }

    /// Returns true if the content is unchanged, as far as this can be found out without reading a
    /// file that was not written to. Reading runs on another thread, because the file may have
    /// gigabytes.
    pub(crate) async fn holds(&self, file: &File) -> io::Result<bool> {
        if self.is_untouched(file)? {
            return Ok(true);
        }
        let (seal, file) = (self.clone(), file.try_clone()?);
        tokio::task::spawn_blocking(move || seal.verify(&file)).await.map_err(io::Error::other)?
    }

    /// Returns true if the content is unchanged. Reads the whole file.
    pub(crate) fn verify(&self, file: &File) -> io::Result<bool> {
        Ok(checksum(file)? == self.blake3)
    }
}

/// Returns true if every write gives the file another time. This holds on file systems that
/// write-protect the pages of a mapping when they are synced, so that they notice the next store
/// into such a page.
fn times_tell(file: &File) -> io::Result<bool> {
    /// From linux/magic.h: ext2 to ext4, XFS, Btrfs, F2FS.
    const KNOWN: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
    let kind = fstatfs(file)?.f_type;
    Ok(KNOWN.iter().any(|known| u64::try_from(kind).is_ok_and(|kind| kind == *known)))
}

fn modified(file: &File) -> io::Result<i64> {
    Ok(FileIdentity::from(&file.metadata()?).modified_ns)
}

/// Computes the checksum, which is the same for a file with holes and one in which the holes were
/// filled with zeros. Contents are hashed apart from page numbers, in long pieces, which is several
/// times as fast.
fn checksum(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let (mut numbers, mut contents) = (blake3::Hasher::new(), blake3::Hasher::new());
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = next_data(file, at, length)? {
        // Whole pages, whatever block size the file system has.
        let end = next_hole(file, data, length)?.next_multiple_of(PAGE as u64).min(length);
        at = data - data % PAGE as u64;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let read = &mut buffer[..wanted];
            file.read_exact_at(read, at)?;
            let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
            let mut first = at / PAGE as u64;
            for run in read.chunks(PAGE).collect::<Vec<_>>().chunk_by(|one, next| is_zero(one) == is_zero(next)) {
                let pages = first..first + run.len() as u64;
                first = pages.end;
                if !is_zero(run[0]) {
                    let begin = usize::try_from(pages.start * PAGE as u64 - at).unwrap_or(CHUNK);
                    let bytes = run.iter().map(|page| page.len()).sum::<usize>();
                    contents.update(&read[begin..begin + bytes]);
                    for page in pages {
                        numbers.update(&page.to_le_bytes());
                    }
                }
            }
            at += wanted as u64;
        }
    }
    let mut all = blake3::Hasher::new();
    all.update(numbers.finalize().as_bytes()).update(contents.finalize().as_bytes()).update(&length.to_le_bytes());
    Ok(all.finalize().to_hex().to_string())
}

/// Returns the position of the next data at `at` or after it. On a file system without holes,
/// everything is data.
fn next_data(file: &File, at: u64, length: u64) -> io::Result<Option<u64>> {
    if at >= length {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data.max(at))),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn next_hole(file: &File, at: u64, length: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(at)) {
        Ok(hole) => Ok(hole.min(length)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(length),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use std::fs;

    const MIB: usize = 1 << 20;

    fn sparse(path: &std::path::Path, parts: &[(u64, &[u8])], length: u64) -> File {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[tokio::test]
    async fn seals_detect_content_changes_and_ignore_holes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sealed");
        let (many, few) = (vec![7; 3 * MIB + 5], [9; 10]);
        let parts: [(u64, &[u8]); 3] = [(0, &few), (8192, &many), (40 << 20, &few)];
        let length = (64 << 20) + 100;
        let file = sparse(&path, &parts, length);
        let seal = Seal::of(&file).unwrap();
        assert!(seal.holds(&file).await.unwrap() && seal.verify(&file).unwrap());
        // Another process may seal the file too: the seals are equal.
        assert_eq!(Seal::of(&file).unwrap(), seal);

        // A copy without holes.
        let dense = directory.path().join("dense");
        fs::write(&dense, fs::read(&path).unwrap()).unwrap();
        let dense = File::options().read(true).write(true).open(dense).unwrap();
        dense.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(9)).unwrap();
        assert!(!seal.is_untouched(&dense).unwrap() && seal.holds(&dense).await.unwrap());

        // A flipped bit, zeros instead of data, a page that moved, a longer and a shorter file.
        for (at, bytes) in [(8192 + MIB as u64, &[6][..]), (0, &[0; 10]), (50 << 20, &[1])] {
            let other = sparse(&directory.path().join("other"), &parts, length);
            other.write_all_at(bytes, at).unwrap();
            assert!(!seal.verify(&other).unwrap(), "{at}");
        }
        let moved = [(4096, &few[..]), parts[1], parts[2]];
        for (parts, length) in [(moved, length), (parts, length + 1), (parts, length - 1)] {
            let other = sparse(&directory.path().join("other"), &parts, length);
            assert!(!seal.verify(&other).unwrap());
        }

        // Written to immediately, with the content it already has, on a file system whose time
        // advances in ticks.
        file.write_all_at(&few, 0).unwrap();
        assert!(!seal.is_untouched(&file).unwrap() && seal.holds(&file).await.unwrap());

        // A change that left no trace is found only by reading the file.
        let time = UNIX_EPOCH + Duration::from_nanos(u64::try_from(seal.modified_ns).unwrap());
        file.write_all_at(&[1], 20 << 20).unwrap();
        assert!(!seal.holds(&file).await.unwrap());
        file.set_modified(time).unwrap();
        assert!(seal.holds(&file).await.unwrap() && !seal.verify(&file).unwrap());
    }

    /// Writes to a page through a mapping, seals the file, and writes to the page again. Returns
    /// true if the seal notices it.
    async fn is_found_when_written_through_a_mapping(directory: &std::path::Path) -> bool {
        let directory = tempfile::tempdir_in(directory).unwrap();
        let file = sparse(&directory.path().join("sealed"), &[(0, &[1])], 1 << 20);
        let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let page = unsafe { mmap(std::ptr::null_mut(), PAGE, flags.0, flags.1, &file, 0) }.unwrap().cast::<u8>();
        // SAFETY: the first byte of the mapping, which no reference points into.
        unsafe { page.write_volatile(2) };
        let seal = Seal::of(&file).unwrap();
        // SAFETY: as above.
        unsafe { page.write_volatile(3) };
        let found = !seal.holds(&file).await.unwrap();
        // SAFETY: the mapping, which is not used any more.
        unsafe { munmap(page.cast(), PAGE) }.unwrap();
        found
    }

    #[tokio::test]
    async fn writes_through_a_mapping_are_detected_on_tmpfs_too() {
        assert!(is_found_when_written_through_a_mapping(&std::env::temp_dir()).await);
        assert!(is_found_when_written_through_a_mapping(std::path::Path::new("/dev/shm")).await);
    }

    #[test]
    fn empty_files_have_seals() {
        let directory = tempfile::tempdir().unwrap();
        let empty = sparse(&directory.path().join("empty"), &[], 0);
        let hole = sparse(&directory.path().join("hole"), &[], 1 << 30);
        let seal = Seal::of(&empty).unwrap();
        assert!(seal.verify(&empty).unwrap() && !seal.verify(&hole).unwrap());
    }
}
