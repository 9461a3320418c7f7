//! API keys: made once, shown once, kept as hashes in `keys.json` beside the server's other files. A key's ID stays when
//! its secret is rotated, and is what sandboxes belong to.

use super::tokens::random;
use sandboxvm_file_lock::{self as file_lock, Sharing};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};
use subtle::ConstantTimeEq;

/// Far more keys than one machine has users.
const MAX_FILE: u64 = 8 << 20;

/// Why keys cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot read or write the keys in {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// There is none of that ID.
    #[error("no key has the ID {0:?}")]
    Unknown(String),
}

/// Identifies a key, and the client that uses it. Never reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct KeyId(pub(crate) String);

/// What a key may do besides being valid. Absent: as the server's configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLimits {
    /// Sandboxes at a time, paused ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<u32>,
    /// Snapshots at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u32>,
    /// Disk space of its sandboxes and snapshots together, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_mib: Option<u64>,
    /// Disk space of its sandboxes' audit logs together, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_mib: Option<u64>,
    /// Volumes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<u32>,
    /// Requests to the control plane in a second, over ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Only looking, nothing that makes, changes or ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Templates it may make sandboxes from; empty: all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub templates: BTreeSet<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredKey {
    id: KeyId,
    name: String,
    /// SHA-256 of the key: it has 160 bits of entropy, so no slow hash is needed.
    sha256: String,
    /// Its last characters, for people.
    hint: String,
    created_at: u64,
    /// Unix time in seconds from which on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    /// The key whose sandboxes it looks at, in place of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    looks_at: Option<KeyId>,
    limits: KeyLimits,
}

/// What a new key is to be.
#[derive(Debug, Clone, Default)]
pub struct WantedKey {
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub limits: KeyLimits,
    /// From when on it is refused.
    pub expires_at: Option<SystemTime>,
    /// ID of the key whose sandboxes it looks at; it is then read-only.
    pub looks_at: Option<String>,
}

/// A key as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownKey {
    /// Its ID.
    pub id: String,
    /// What it was called.
    pub name: String,
    /// `e2b_...` and its last four characters.
    pub hint: String,
    /// Unix time in seconds.
    pub created_at: u64,
    /// Unix time in seconds from which on it is refused.
    pub expires_at: Option<u64>,
    /// ID of the key whose sandboxes it looks at.
    pub looks_at: Option<String>,
    /// What it may do.
    pub limits: KeyLimits,
}

/// A key just made; the only time its secret is there.
#[derive(Clone)]
pub struct NewKey {
    /// Its ID.
    pub id: String,
    /// `e2b_` and 40 hexadecimal digits.
    pub secret: String,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A key that was presented and is valid.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Key {
    /// The key whose sandboxes it finds: itself, unless it looks at another's.
    pub(crate) id: KeyId,
    /// What it does counts for this key.
    pub(crate) account: KeyId,
    pub(crate) limits: KeyLimits,
}

/// The keys of one server. The file is read again when it has changed, so a running server sees what `sandboxvm key` did.
#[derive(Debug)]
pub struct KeyStore {
    path: PathBuf,
    read: Mutex<(Option<FileStamp>, Vec<StoredKey>)>,
}

type FileStamp = (u64, u64, SystemTime);

impl KeyStore {
    /// The keys at `path`; there need not be any.
    ///
    /// # Errors
    /// Every [`KeyError`] of reading.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let store = Self { path: path.to_owned(), read: Mutex::default() };
        store.current()?;
        Ok(store)
    }

    /// The path of a home's keys.
    #[must_use]
    pub fn path_in(home: &Path) -> PathBuf {
        home.join("server/keys.json")
    }

    /// Makes a key.
    ///
    /// # Errors
    /// Every [`KeyError`].
    pub fn create(&self, wanted: WantedKey) -> Result<NewKey, KeyError> {
        let id = hex::encode(random::<6>().map_err(|source| self.io(source))?);
        let secret = self.secret()?;
        self.change(|keys| {
            let mut limits = wanted.limits;
            if let Some(other) = &wanted.looks_at {
                limits.read_only = true;
                if !keys.iter().any(|key| key.id.0 == *other) {
                    return Err(KeyError::Unknown(other.clone()));
                }
            }
            keys.push(StoredKey {
                id: KeyId(id.clone()),
                name: wanted.name,
                sha256: hash(secret.as_bytes()),
                hint: hint(&secret),
                created_at: unix_seconds(SystemTime::now()),
                expires_at: wanted.expires_at.map(unix_seconds),
                looks_at: wanted.looks_at.map(KeyId),
                limits,
            });
            Ok(())
        })?;
        Ok(NewKey { id, secret })
    }

    /// Gives a key another secret; the old one is refused from now on, and everything it made stays its.
    ///
    /// # Errors
    /// Every [`KeyError`].
    pub fn rotate(&self, id: &str) -> Result<NewKey, KeyError> {
        let secret = self.secret()?;
        self.change(|keys| {
            let unknown = || KeyError::Unknown(id.to_owned());
            let key = keys.iter_mut().find(|key| key.id.0 == id).ok_or_else(unknown)?;
            (key.sha256, key.hint) = (hash(secret.as_bytes()), hint(&secret));
            key.created_at = unix_seconds(SystemTime::now());
            Ok(())
        })?;
        Ok(NewKey { id: id.to_owned(), secret })
    }

    /// Forgets a key. Its sandboxes live as long as they were to.
    ///
    /// # Errors
    /// Every [`KeyError`].
    pub fn remove(&self, id: &str) -> Result<(), KeyError> {
        self.change(|keys| {
            let before = keys.len();
            keys.retain(|key| key.id.0 != id);
            if keys.len() == before { Err(KeyError::Unknown(id.to_owned())) } else { Ok(()) }
        })
    }

    /// All keys, oldest first.
    ///
    /// # Errors
    /// Every [`KeyError`] of reading.
    pub fn list(&self) -> Result<Vec<ShownKey>, KeyError> {
        let shown = |key: StoredKey| ShownKey {
            id: key.id.0,
            name: key.name,
            hint: format!("e2b_...{}", key.hint),
            created_at: key.created_at,
            expires_at: key.expires_at,
            looks_at: key.looks_at.map(|id| id.0),
            limits: key.limits,
        };
        Ok(self.current()?.into_iter().map(shown).collect())
    }

    /// The key with this secret, unless it has expired. Every stored hash is compared, in the same time whatever they have in common.
    pub(crate) fn check(&self, secret: &[u8], now: SystemTime) -> Result<Option<Key>, KeyError> {
        let now = unix_seconds(now);
        let hash = hash(secret);
        let mut found = None;
        for key in self.current()? {
            let is_valid = key.expires_at.is_none_or(|expires| now < expires);
            if bool::from(key.sha256.as_bytes().ct_eq(hash.as_bytes())) && is_valid {
                let owner = key.looks_at.unwrap_or_else(|| key.id.clone());
                found = Some(Key { id: owner, account: key.id, limits: key.limits });
            }
        }
        Ok(found)
    }

    /// Whether what belongs to this key may be read, or changed, by a token that was given out for it: as long as
    /// the key is there, has not expired, and, for changes, is not read-only.
    pub(crate) fn permits(&self, id: &KeyId, is_change: bool, now: SystemTime) -> Result<bool, KeyError> {
        let now = unix_seconds(now);
        Ok(self.current()?.iter().any(|key| {
            key.id == *id && key.expires_at.is_none_or(|expires| now < expires) && !(is_change && key.limits.read_only)
        }))
    }

    fn secret(&self) -> Result<String, KeyError> {
        Ok(format!("e2b_{}", hex::encode(random::<20>().map_err(|source| self.io(source))?)))
    }

    fn io(&self, source: io::Error) -> KeyError {
        KeyError::Io { path: self.path.clone(), source }
    }

    fn stamp(&self) -> Result<Option<FileStamp>, KeyError> {
        use std::os::unix::fs::MetadataExt;
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => {
                let modified = metadata.modified().map_err(|source| self.io(source))?;
                Ok(Some((metadata.ino(), metadata.len(), modified)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io(error)),
        }
    }

    fn current(&self) -> Result<Vec<StoredKey>, KeyError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.stamp()?;
        if read.0 != stamp {
            let keys = match stamp {
                None => Vec::new(),
                Some((_, length, _)) if length > MAX_FILE => return Err(self.io(io::ErrorKind::FileTooLarge.into())),
                Some(_) => {
                    let bytes = fs::read(&self.path).map_err(|source| self.io(source))?;
                    serde_json::from_slice(&bytes)
                        .map_err(|source| KeyError::Damaged { path: self.path.clone(), source })?
                }
            };
            *read = (stamp, keys);
        }
        Ok(read.1.clone())
    }

    /// Changes the file, alone among all who do, in one step.
    fn change(&self, change: impl FnOnce(&mut Vec<StoredKey>) -> Result<(), KeyError>) -> Result<(), KeyError> {
        let failed = |source| self.io(source);
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(directory.join("keys.lock")).map_err(failed)?;
        file_lock::wait(Sharing::Exclusive, &lock).map_err(failed)?;
        let mut keys = self.current()?;
        change(&mut keys)?;
        // One name, because the lock allows one writer: what a killed command left is replaced by the next.
        let unfinished = directory.join("keys.json.new");
        if let Err(error) = fs::remove_file(&unfinished)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(failed(error));
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).map_err(failed)?;
        let bytes = serde_json::to_vec_pretty(&keys).map_err(|error| failed(error.into()))?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, &self.path)) {
            // It may have taken the last room of the disk.
            let _ = fs::remove_file(&unfinished);
            return Err(failed(error));
        }
        // A key that was removed is not to be good again after a power failure.
        fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn hash(secret: &[u8]) -> String {
    hex::encode(Sha256::digest(secret))
}

fn hint(secret: &str) -> String {
    secret[secret.len() - 4..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_key_is_good_until_it_is_rotated_or_removed_and_its_secret_is_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = KeyStore::path_in(dir.path());
        let (store, other) = (KeyStore::open(&path).unwrap(), KeyStore::open(&path).unwrap());
        let now = SystemTime::now();
        assert!(store.check(b"", now).unwrap().is_none());
        let limits = KeyLimits { sandboxes: Some(3), ..KeyLimits::default() };
        let key = store.create(WantedKey { name: "one".into(), limits, ..WantedKey::default() }).unwrap();
        assert!(key.secret.starts_with("e2b_") && key.secret.len() == 44);
        // Another that has the file open sees it.
        let found = other.check(key.secret.as_bytes(), now).unwrap().unwrap();
        assert_eq!((found.id.0.as_str(), found.limits.sandboxes), (key.id.as_str(), Some(3)));
        assert!(!fs::read_to_string(&path).unwrap().contains(&key.secret[4..]));
        assert!(!format!("{key:?}").contains(&key.secret[4..]));

        let again = store.rotate(&key.id).unwrap();
        assert!(other.check(key.secret.as_bytes(), now).unwrap().is_none());
        assert_eq!(other.check(again.secret.as_bytes(), now).unwrap().unwrap().id.0, key.id);
        store.remove(&key.id).unwrap();
        assert!(other.check(again.secret.as_bytes(), now).unwrap().is_none());
        assert!(matches!(store.remove(&key.id), Err(KeyError::Unknown(_))));
    }

    #[test]
    fn a_key_is_refused_once_it_has_expired_whatever_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(&KeyStore::path_in(dir.path())).unwrap();
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        let key = store.create(WantedKey { expires_at: Some(now + day), ..WantedKey::default() }).unwrap();
        let key = store.rotate(&key.id).unwrap();
        let is_valid = |at| store.check(key.secret.as_bytes(), at).unwrap().is_some();
        assert!(is_valid(now) && is_valid(now + day - Duration::from_secs(2)));
        assert!(!is_valid(now + day) && !is_valid(now + 30 * day));
        assert_eq!(store.list().unwrap()[0].expires_at, Some(unix_seconds(now + day)));
        let permits = |is_change, at| store.permits(&KeyId(key.id.clone()), is_change, at).unwrap();
        assert_eq!((permits(true, now), permits(true, now + day), permits(false, now + day)), (true, false, false));
        let limits = KeyLimits { read_only: true, ..KeyLimits::default() };
        let looks = KeyId(store.create(WantedKey { limits, ..WantedKey::default() }).unwrap().id);
        let permits = |is_change| store.permits(&looks, is_change, now).unwrap();
        assert_eq!((permits(false), permits(true)), (true, false));
        store.remove(&looks.0).unwrap();
        assert!(!store.permits(&looks, false, now).unwrap());
    }

    #[test]
    fn a_key_that_looks_at_anothers_sandboxes_finds_those_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(&KeyStore::path_in(dir.path())).unwrap();
        let owner = store.create(WantedKey::default()).unwrap();
        let looks_at = |id: &str| WantedKey { looks_at: Some(id.to_owned()), ..WantedKey::default() };
        let looker = store.create(looks_at(&owner.id)).unwrap();
        let found = store.check(looker.secret.as_bytes(), SystemTime::now()).unwrap().unwrap();
        assert_eq!((found.id.0, found.account.0, found.limits.read_only), (owner.id, looker.id, true));
        assert!(matches!(store.create(looks_at("x")), Err(KeyError::Unknown(_))));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        fs::write(&path, "[{]").unwrap();
        assert!(matches!(KeyStore::open(&path), Err(KeyError::Damaged { .. })));
    }

    #[test]
    fn changed_keys_sync_the_directory() {
        crate::without_fsync::act("access::keys::tests::changed_keys_sync_the_directory", || {
            let dir = tempfile::tempdir().unwrap();
            let store = KeyStore::open(&KeyStore::path_in(dir.path())).unwrap();
            assert!(matches!(store.create(WantedKey::default()), Err(KeyError::Io { .. })));
        });
    }
}
