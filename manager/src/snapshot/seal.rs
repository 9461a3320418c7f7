//! What a file of a snapshot was when it was made: its checksum, and the time it was last written to.
//!
//! Memory and disk layers are mapped or read as the guest touches them, never all at once, so that a restore takes no longer
//! with more of them. Whether a file is the one that was sealed, its time says in one call; only where that is another
//! (the file was written to, or copied) all of it is read and its checksum decides. What changes on the medium alone, time
//! and all, is found by [`Seal::verify`], which always reads. A VMM that was taken over and writes into a snapshot of its own
//! machine cannot set a file's time, nor find another content with this checksum.
//!
//! A time tells only where the file system sets it for a write through a mapping too, also when the page was written to
//! before the file was sealed: tmpfs does not. Files on file systems that are not known to do so are always read.

use crate::home::directory::{DirectoryError, SandboxDirectory};
use rustix::{
    fs::{SeekFrom, fstatfs, seek},
    io::Errno,
};
use sandboxvm_images::file_version::FileVersion;
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
    /// It does not have its checksum.
    #[error("{} was changed since the snapshot was made: it does not have its checksum", .0.display())]
    Changed(PathBuf),
    /// It cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Seals by the names of files in one directory. Written down as a list.
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

    /// Takes over other seals of the same directory.
    pub(crate) fn extend(&mut self, others: Seals) {
        self.0.extend(others.0);
    }

    /// Forgets those of files that are not wanted.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.0.retain(|file, _| is_wanted(file));
    }

    /// Refuses a file that is not what it was, as far as can be told without reading one that was not written to. One
    /// without a seal is what it is.
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
/// Read at a time.
const CHUNK: usize = 1 << 20;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// When it was last written to, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// BLAKE3, in hexadecimal, over that of the numbers of all pages of 4 KiB that are not zero, in order, that of their
    /// contents, and the file's length in bytes; numbers have 64 bits, little-endian.
    pub blake3: String,
}

impl Seal {
    /// Of a file that nobody writes to any more, at least none who keeps to the rules. Has it have a time that is past, which
    /// no later write can leave it with, and leaves it one that is: others may have sealed it. Syncing it has writes seen that
    /// come by way of a mapping, too, where [`times_tell`]. Reads what it has.
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

    /// Whether it is known, by its time, that it was not written to since.
    pub(crate) fn is_untouched(&self, file: &File) -> io::Result<bool> {
        Ok(modified(file)? == self.modified_ns && times_tell(file)?)
    }

    /// Whether its content is what it was, as far as can be told without reading a file that was not written to. Others go
    /// on while one is read: it may have gigabytes.
    pub(crate) async fn holds(&self, file: &File) -> io::Result<bool> {
        if self.is_untouched(file)? {
            return Ok(true);
        }
        let (seal, file) = (self.clone(), file.try_clone()?);
        tokio::task::spawn_blocking(move || seal.verify(&file)).await.map_err(io::Error::other)?
    }

    /// Whether its content is what it was. Reads all of it.
    pub(crate) fn verify(&self, file: &File) -> io::Result<bool> {
        Ok(checksum(file)? == self.blake3)
    }
}

/// True where every write gives the file another time: on file systems that write-protect the pages of a mapping when they
/// are synced, so that the next store into one is seen.
fn times_tell(file: &File) -> io::Result<bool> {
    /// linux/magic.h: ext2 to ext4, XFS, Btrfs, F2FS.
    const KNOWN: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
    let kind = fstatfs(file)?.f_type;
    Ok(KNOWN.iter().any(|known| u64::try_from(kind).is_ok_and(|kind| kind == *known)))
}

fn modified(file: &File) -> io::Result<i64> {
    Ok(FileVersion::from(&file.metadata()?).modified_ns)
}

/// The same for a file with holes and one in which they were filled with zeros. Contents are hashed apart from page numbers,
/// in long pieces, which is several times as fast.
fn checksum(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let (mut numbers, mut contents) = (blake3::Hasher::new(), blake3::Hasher::new());
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = next_data(file, at, length)? {
        // Whole pages, whatever the file system's blocks are.
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

/// Where data begins at `at` or after; all is data on a file system that knows no holes.
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
    async fn any_change_of_content_is_found_and_none_of_form() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sealed");
        let (many, few) = (vec![7; 3 * MIB + 5], [9; 10]);
        let parts: [(u64, &[u8]); 3] = [(0, &few), (8192, &many), (40 << 20, &few)];
        let length = (64 << 20) + 100;
        let file = sparse(&path, &parts, length);
        let seal = Seal::of(&file).unwrap();
        assert!(seal.holds(&file).await.unwrap() && seal.verify(&file).unwrap());
        // By whoever else has it: one seal stays as good as the other.
        assert_eq!(Seal::of(&file).unwrap(), seal);

        // A copy without holes.
        let dense = directory.path().join("dense");
        fs::write(&dense, fs::read(&path).unwrap()).unwrap();
        let dense = File::options().read(true).write(true).open(dense).unwrap();
        dense.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(9)).unwrap();
        assert!(!seal.is_untouched(&dense).unwrap() && seal.holds(&dense).await.unwrap());

        // A bit, zeros where there were others, a page that moved, a longer and a shorter one.
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

        // Written to at once, with what it has already, by a file system that tells time in ticks.
        file.write_all_at(&few, 0).unwrap();
        assert!(!seal.is_untouched(&file).unwrap() && seal.holds(&file).await.unwrap());

        // What changed without a trace is not looked for, and found when it is.
        let time = UNIX_EPOCH + Duration::from_nanos(u64::try_from(seal.modified_ns).unwrap());
        file.write_all_at(&[1], 20 << 20).unwrap();
        assert!(!seal.holds(&file).await.unwrap());
        file.set_modified(time).unwrap();
        assert!(seal.holds(&file).await.unwrap() && !seal.verify(&file).unwrap());
    }

    /// A page that was written to through a mapping before the file was sealed, and once more after.
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
    async fn writes_through_a_mapping_are_found_on_tmpfs_too() {
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
