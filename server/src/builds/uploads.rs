//! The archives that clients upload for `COPY`: one file for each key and hash. The bytes are never read here. A file receives
//! its name when all of it has arrived, and what one key has is bounded.

use crate::access::keys::KeyId;
use sandboxvm_build::e2b;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// Uploads of one key at a time.
const MAX_OF_KEY: u32 = 2;
/// Uploads of all keys at a time: each has a thread.
const MAX_OF_ALL: u32 = 8;
/// Longest time of an upload, as E2B's clients wait.
const WITHIN: Duration = Duration::from_secs(3600);
/// An upload that is as old makes place for another one.
const IS_OLD: Duration = Duration::from_secs(3600);
/// What the launcher answers to a complete upload.
pub(crate) const DONE: u8 = b'1';

/// Why a file cannot be uploaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the uploads of this API key would use more than {0} MiB; wait an hour, or upload less")]
    Full(u64),
    #[error("too many uploads at the same time; try again in a moment")]
    Busy,
    #[error("cannot keep the upload: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub(crate) struct UploadStore {
    directory: PathBuf,
    mib_per_key: u64,
    /// Bytes that are being received, and by how many uploads.
    receiving: Mutex<HashMap<KeyId, (u64, u32)>>,
}

/// The uploads of one key.
#[derive(Debug)]
pub(crate) struct KeyUploads(PathBuf);

/// True if a text is the hash of an upload, and so the name of a file.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl e2b::Uploads for KeyUploads {
    fn open(&self, hash: &str) -> io::Result<File> {
        if !is_hash(hash) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        File::open(self.0.join(hash))
    }
}

impl UploadStore {
    pub(crate) fn open(directory: PathBuf, mib_per_key: u64) -> io::Result<Self> {
        // What is half received has no name that a build finds.
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        for entry in fs::read_dir(&directory)?.flatten().filter(|entry| entry.path().is_dir()) {
            for file in fs::read_dir(entry.path())?.flatten() {
                if !file.file_name().to_str().is_some_and(is_hash) {
                    let _ = fs::remove_file(file.path());
                }
            }
        }
        Ok(Self { directory, mib_per_key, receiving: Mutex::default() })
    }

    pub(crate) fn of(&self, owner: &KeyId) -> KeyUploads {
        // An ID is not trusted to be a name of a file.
        KeyUploads(self.directory.join(hex::encode(Sha256::digest(owner.0.as_bytes()))))
    }

    pub(crate) fn has(&self, owner: &KeyId, hash: &str) -> bool {
        is_hash(hash) && self.of(owner).0.join(hash).exists()
    }

    /// Bytes that a key's uploads take.
    pub(crate) fn bytes_of(&self, owner: &KeyId) -> u64 {
        files(&self.of(owner).0).map(|(_, bytes, _)| bytes).sum()
    }

    /// Maximum number of bytes of one key.
    pub(crate) fn most(&self) -> u64 {
        self.mib_per_key.saturating_mul(1 << 20)
    }

    /// A place for an upload of this length; old ones make room for it.
    pub(crate) fn begin(&self, owner: &KeyId, length: u64) -> Result<Receiving<'_>, UploadError> {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, count) = receiving.get(owner).copied().unwrap_or_default();
        if count >= MAX_OF_KEY || receiving.values().map(|(_, count)| count).sum::<u32>() >= MAX_OF_ALL {
            return Err(UploadError::Busy);
        }
        let wanted = bytes.saturating_add(length);
        if wanted.saturating_add(self.bytes_of(owner)) > self.most() {
            let mut old: Vec<_> = files(&self.of(owner).0).filter(|(_, _, age)| *age > IS_OLD).collect();
            old.sort_by_key(|(_, _, age)| std::cmp::Reverse(*age));
            for (path, _, _) in old {
                if wanted.saturating_add(self.bytes_of(owner)) <= self.most() {
                    break;
                }
                fs::remove_file(path)?;
            }
            if wanted.saturating_add(self.bytes_of(owner)) > self.most() {
                return Err(UploadError::Full(self.mib_per_key));
            }
        }
        receiving.insert(owner.clone(), (wanted, count + 1));
        Ok(Receiving { store: self, owner: owner.clone(), length })
    }
}

/// Files of a directory with their sizes and ages.
fn files(directory: &Path) -> impl Iterator<Item = (PathBuf, u64, Duration)> {
    let now = SystemTime::now();
    fs::read_dir(directory).into_iter().flatten().flatten().filter_map(move |entry| {
        let metadata = entry.metadata().ok()?;
        let age = metadata.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
        Some((entry.path(), metadata.len(), age))
    })
}

/// An upload that is being received.
#[derive(Debug)]
pub(crate) struct Receiving<'s> {
    store: &'s UploadStore,
    owner: KeyId,
    length: u64,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let mut receiving = self.store.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((bytes, count)) = receiving.get_mut(&self.owner) {
            *bytes = bytes.saturating_sub(self.length);
            *count -= 1;
            if *count == 0 {
                receiving.remove(&self.owner);
            }
        }
    }
}

impl Receiving<'_> {
    /// Reads the upload to the end of the stream and keeps it if it has the stated length. Blocks.
    pub(crate) fn receive(&self, hash: &str, mut stream: UnixStream, pause: Duration) -> io::Result<()> {
        let directory = self.store.of(&self.owner).0;
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        stream.set_read_timeout(Some(pause.max(Duration::from_secs(1))))?;
        let mut file = tempfile::NamedTempFile::new_in(&directory)?;
        let (mut left, until) = (self.length, Instant::now() + WITHIN);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                count => {
                    left = left.checked_sub(count as u64).ok_or(io::ErrorKind::InvalidData)?;
                    file.write_all(&buffer[..count])?;
                }
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        if left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.persist(directory.join(hash))?;
        stream.write_all(&[DONE])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2b::Uploads;
    use std::{net::Shutdown, thread};

    const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn send(store: &UploadStore, owner: &KeyId, stated: u64, bytes: &[u8]) -> io::Result<()> {
        let receiving = store.begin(owner, stated).map_err(io::Error::other)?;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let received = scope.spawn(|| receiving.receive(HASH, ours, Duration::from_secs(5)));
            let _ = theirs.write_all(bytes);
            let _ = theirs.shutdown(Shutdown::Write);
            received.join().unwrap()
        })
    }

    #[test]
    fn upload_is_there_once_all_of_it_has_arrived() {
        let dir = tempfile::tempdir().unwrap();
        let store = UploadStore::open(dir.path().join("x"), 1).unwrap();
        let (owner, other) = (KeyId("1".into()), KeyId("../2".into()));
        assert!(send(&store, &owner, 6, b"short").is_err() && send(&store, &owner, 4, b"longer").is_err());
        assert!(!store.has(&owner, HASH) && store.bytes_of(&owner) == 0);
        send(&store, &owner, 5, b"right").unwrap();
        assert!(store.has(&owner, HASH) && !store.has(&other, HASH));
        let mut text = String::new();
        store.of(&owner).open(HASH).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), store.bytes_of(&owner)), ("right", 5));
        for name in ["../x", "", "A"] {
            assert!(store.of(&owner).open(name).is_err() && !store.has(&owner, name));
        }
    }

    #[test]
    fn uploads_of_a_key_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = UploadStore::open(dir.path().join("x"), 1).unwrap();
        let (owner, other) = (KeyId("1".into()), KeyId("2".into()));
        let all = 1 << 20;
        assert!(matches!(store.begin(&owner, all + 1), Err(UploadError::Full(1))));
        let first = store.begin(&owner, all - 1).unwrap();
        assert!(matches!(store.begin(&owner, 2), Err(UploadError::Full(1))));
        let second = store.begin(&owner, 1).unwrap();
        assert!(matches!(store.begin(&owner, 0), Err(UploadError::Busy)));
        drop(store.begin(&other, all).unwrap());
        drop((first, second));
        send(&store, &owner, 600 << 10, &vec![7; 600 << 10]).unwrap();
        assert!(matches!(store.begin(&owner, 600 << 10), Err(UploadError::Full(1))));
        // One that is old makes place.
        let path = store.of(&owner).0.join(HASH);
        let old = SystemTime::now() - 2 * IS_OLD;
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        drop(store.begin(&owner, 600 << 10).unwrap());
        assert!(!store.has(&owner, HASH));
    }
}
