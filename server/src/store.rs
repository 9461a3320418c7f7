//! Small JSON files, each replaced in one step: what a killed server finds again. A file that cannot be read is kept and
//! named in the log, never taken for absent.

use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder},
    io::{self, Write},
    marker::PhantomData,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Version of the files' format.
pub(crate) const FORMAT: u32 = 1;

/// A record is some hundred bytes and the metadata given at create.
const MAX_FILE: u64 = 1 << 20;

/// How the names of files begin that are being written. Earlier versions used the same.
const UNFINISHED: &str = ".tmp";

/// Why something was not written down or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", .path.display())]
pub struct StoreError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StoreError {
    /// Of a directory that is not one of records.
    pub(crate) fn of(path: &Path, source: io::Error) -> Self {
        error("prepare", path)(source)
    }
}

/// A directory of records of one type, each under a name of `[a-z0-9-]`.
#[derive(Debug)]
pub(crate) struct Store<T> {
    directory: PathBuf,
    of: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> Store<T> {
    /// Opens the directory, which no other process may write in: the server has locked its home. What a killed server
    /// was writing is removed.
    pub(crate) fn open(directory: PathBuf) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(error("make", &directory))?;
        let unfinished = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes());
        for entry in fs::read_dir(&directory).map_err(error("list", &directory))?.flatten().filter(unfinished) {
            fs::remove_file(entry.path()).map_err(error("remove", &entry.path()))?;
        }
        Ok(Self { directory, of: PhantomData })
    }

    /// Replaces it in one step. A loss of power may bring back what was there before.
    pub(crate) fn put(&self, name: &str, value: &T) -> Result<(), StoreError> {
        self.write(name, value, false)
    }

    /// The same, and a loss of power changes nothing any more when this returns.
    pub(crate) fn put_durably(&self, name: &str, value: &T) -> Result<(), StoreError> {
        self.write(name, value, true)
    }

    fn write(&self, name: &str, value: &T, durably: bool) -> Result<(), StoreError> {
        let path = self.path(name);
        let write = || {
            // Made with mode 0600.
            let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.directory)?;
            file.write_all(&serde_json::to_vec(value)?)?;
            if durably {
                file.as_file().sync_data()?;
            }
            file.persist(&path)?;
            if durably { self.sync() } else { Ok(()) }
        };
        write().map_err(error("write", &path))
    }

    /// Whether or not it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(failed) if failed.kind() != io::ErrorKind::NotFound => Err(error("remove", &path)(failed)),
            _ => Ok(()),
        }
    }

    /// The same, and a loss of power does not bring it back.
    pub(crate) fn remove_durably(&self, name: &str) -> Result<(), StoreError> {
        self.remove(name)?;
        self.sync().map_err(error("sync", &self.directory))
    }

    /// Opens the file of a record that has secrets, before it is replaced or removed.
    pub(crate) fn outgoing(&self, name: &str) -> Outgoing {
        Outgoing(fs::OpenOptions::new().write(true).open(self.path(name)).ok())
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.directory)?.sync_all()
    }

    /// One of them, if it is there and can be read.
    pub(crate) fn get(&self, name: &str) -> Option<T> {
        read(&self.path(name)).ok()
    }

    /// Everything that can be read.
    pub(crate) fn all(&self) -> Result<Vec<T>, StoreError> {
        let entries = fs::read_dir(&self.directory).map_err(error("list", &self.directory))?;
        let mut all = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension() == Some("json".as_ref()))
        {
            match read(&path) {
                Ok(value) => all.push(value),
                Err(reason) => {
                    tracing::error!(path = %path.display(), %reason, "cannot read a record, skipping it")
                }
            }
        }
        Ok(all)
    }

    /// The names of all records, also of those that cannot be read.
    pub(crate) fn names(&self) -> Result<Vec<String>, StoreError> {
        let list = || {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.directory)? {
                let name = entry?.file_name().into_string();
                names.extend(name.ok().and_then(|name| Some(name.strip_suffix(".json")?.to_owned())));
            }
            Ok(names)
        };
        list().map_err(error("list", &self.directory))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name).with_extension("json")
    }
}

/// A file that is about to have no name any more.
#[derive(Debug)]
#[must_use]
pub(crate) struct Outgoing(Option<fs::File>);

impl Outgoing {
    /// Overwrites its bytes. A file system that writes elsewhere keeps them until it needs the room.
    pub(crate) fn wipe(self) {
        let Some(mut file) = self.0 else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_FILE);
        let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
        // The record is replaced or removed in any case.
        let _ = file.write_all(&zeros).and_then(|()| file.sync_data());
    }
}

/// Unix time in milliseconds, as files have it.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    if fs::symlink_metadata(path)?.len() > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn records_are_replaced_listed_and_removed_and_a_damaged_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::<String>::open(dir.path().join("x")).unwrap();
        store.put("a", &"1".to_owned()).unwrap();
        store.put("a", &"2".to_owned()).unwrap();
        fs::write(dir.path().join("x/b.json"), "{").unwrap();
        assert_eq!(store.all().unwrap(), ["2"]);
        assert_eq!(HashSet::from_iter(store.names().unwrap()), HashSet::from(["a".to_owned(), "b".to_owned()]));
        store.remove("a").unwrap();
        store.remove("a").unwrap();
        assert!(store.all().unwrap().is_empty() && dir.path().join("x/b.json").exists());
    }

    #[test]
    fn what_a_killed_server_was_writing_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::<String>::open(dir.path().to_owned()).unwrap();
        store.put("a", &"1".to_owned()).unwrap();
        // A kill leaves what `keep` leaves.
        drop(tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir.path()).unwrap().keep().unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(Store::<String>::open(dir.path().to_owned()).unwrap().names().unwrap(), ["a"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn bytes_of_a_record_with_secrets_are_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::<String>::open(dir.path().join("x")).unwrap();
        for put_another in [true, false] {
            store.put("a", &"hush".to_owned()).unwrap();
            let link = dir.path().join(format!("link-{put_another}"));
            fs::hard_link(dir.path().join("x/a.json"), &link).unwrap();
            let outgoing = store.outgoing("a");
            if put_another {
                store.put("a", &"other".to_owned()).unwrap();
            } else {
                store.remove("a").unwrap();
            }
            assert!(fs::read_to_string(&link).unwrap().contains("hush"));
            outgoing.wipe();
            assert!(fs::read(&link).unwrap().iter().all(|byte| *byte == 0));
            assert_eq!(store.all().unwrap().len(), usize::from(put_another));
        }
        store.outgoing("b").wipe();
    }

    #[test]
    fn durable_changes_sync_the_directory() {
        crate::without_fsync::act("store::tests::durable_changes_sync_the_directory", || {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::<String>::open(dir.path().join("x")).unwrap();
            store.put("a", &"1".to_owned()).unwrap();
            store.put_durably("a", &"2".to_owned()).unwrap_err();
            store.remove_durably("a").unwrap_err();
        });
    }
}
