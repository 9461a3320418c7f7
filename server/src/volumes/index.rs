//! The index of volumes, and their records on disk. A record is written after the directory of its volume was made, and
//! removed before the directory is.

use super::{
    VolumeLimits,
    name::{KeysVolumeName, KeysVolumeNameError},
};
use crate::{
    access::{keys::KeyId, tokens::random},
    store::{FORMAT, Store, StoreError},
};
use sandboxvm_manager::{Manager, SharedVolumeError, SharedVolumeId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const MIB: u64 = 1 << 20;

/// One volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    format: u32,
    pub(crate) id: SharedVolumeId,
    pub(crate) name: KeysVolumeName,
    /// The key that owns it. Other keys get 404, as for a volume that does not exist.
    pub(crate) owner: KeyId,
    /// Maximum size of its files in bytes, and number of their names.
    pub(crate) bytes: u64,
    pub(crate) names: u64,
}

/// Why something was not done to a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// There is no such volume, or it is not the caller's.
    #[error("volume {0} was not found")]
    Unknown(String),
    #[error(transparent)]
    Name(#[from] KeysVolumeNameError),
    #[error("a volume named {0} already exists")]
    Taken(KeysVolumeName),
    #[error("this API key has reached its limit of {0} volumes; delete one first")]
    Quota(u32),
    /// A sandbox has it, also one that is paused, or a request about its files is under way.
    #[error("volume {0} is in use by a sandbox, or by a request about its files; end that first")]
    InUse(KeysVolumeName),
    #[error(transparent)]
    Files(#[from] SharedVolumeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot create an ID for the volume: {0}")]
    Entropy(io::Error),
}

/// All volumes of a server.
#[derive(Debug)]
pub(crate) struct VolumeIndex {
    store: Store<VolumeRecord>,
    state: Arc<Mutex<State>>,
    limits: VolumeLimits,
}

#[derive(Debug, Default)]
struct State {
    all: BTreeMap<SharedVolumeId, VolumeRecord>,
    /// How many sandboxes that have no record yet are being made with a volume, and requests about its files.
    held: HashMap<SharedVolumeId, usize>,
}

/// Volumes that are not removed until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldVolumes {
    state: Arc<Mutex<State>>,
    pub(crate) volumes: Vec<VolumeRecord>,
}

impl Drop for HeldVolumes {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        for volume in &self.volumes {
            if let Some(count) = state.held.get_mut(&volume.id) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(&volume.id);
                }
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VolumeIndex {
    /// Reads the records in `directory`.
    pub(crate) fn open(directory: PathBuf, limits: VolumeLimits) -> Result<Self, StoreError> {
        let store = Store::<VolumeRecord>::open(directory)?;
        let all = store.all()?.into_iter().map(|volume| (volume.id.clone(), volume)).collect();
        Ok(Self { store, state: Arc::new(Mutex::new(State { all, held: HashMap::new() })), limits })
    }

    /// Makes a volume. `most` is the key's own limit.
    pub(crate) fn create(
        &self,
        manager: &Manager,
        owner: &KeyId,
        most: Option<u32>,
        name: &str,
    ) -> Result<VolumeRecord, VolumeError> {
        let name = KeysVolumeName::try_from(name.to_owned())?;
        let bytes = random::<16>().map_err(VolumeError::Entropy)?;
        let number = bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let id = SharedVolumeId::try_from(hex::encode(random::<10>().map_err(VolumeError::Entropy)?));
        let id = id.map_err(|error| VolumeError::Entropy(io::Error::other(error)))?;
        // Under the lock, so that names and limits hold: some directories are made meanwhile.
        let mut state = lock(&self.state);
        let own = || state.all.values().filter(|volume| volume.owner == *owner);
        if own().any(|volume| volume.name == name) {
            return Err(VolumeError::Taken(name));
        }
        let most = most.unwrap_or(self.limits.volumes);
        if u32::try_from(own().count()).unwrap_or(u32::MAX) >= most {
            return Err(VolumeError::Quota(most));
        }
        let (bytes, names) = (self.limits.mib.saturating_mul(MIB), self.limits.names);
        let volume = VolumeRecord { format: FORMAT, id, name, owner: owner.clone(), bytes, names };
        manager.create_shared_volume(&volume.id, number)?;
        if let Err(error) = self.store.put_durably(volume.id.as_str(), &volume) {
            // The error is about the record, and the next server that starts removes what is left here.
            let _ = self.store.remove(volume.id.as_str());
            let _ = manager.remove_shared_volume(&volume.id);
            return Err(error.into());
        }
        state.all.insert(volume.id.clone(), volume.clone());
        Ok(volume)
    }

    /// A key's volume.
    pub(crate) fn find(&self, owner: &KeyId, id: &str) -> Result<VolumeRecord, VolumeError> {
        let unknown = || VolumeError::Unknown(id.to_owned());
        let known = SharedVolumeId::try_from(id.to_owned()).map_err(|_| unknown())?;
        self.get(&known).filter(|volume| volume.owner == *owner).ok_or_else(unknown)
    }

    /// A volume of any key, for a client that has its token. It is not removed until the result is dropped.
    pub(crate) fn hold_any(&self, id: &SharedVolumeId) -> Option<(VolumeRecord, HeldVolumes)> {
        let mut state = lock(&self.state);
        let volume = state.all.get(id)?.clone();
        *state.held.entry(id.clone()).or_default() += 1;
        let held = HeldVolumes { state: Arc::clone(&self.state), volumes: vec![volume.clone()] };
        Some((volume, held))
    }

    fn get(&self, id: &SharedVolumeId) -> Option<VolumeRecord> {
        lock(&self.state).all.get(id).cloned()
    }

    /// All volumes of a key, by name.
    pub(crate) fn list(&self, owner: &KeyId) -> Vec<VolumeRecord> {
        let mut own: Vec<_> = lock(&self.state).all.values().filter(|volume| volume.owner == *owner).cloned().collect();
        own.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        own
    }

    /// Finds volumes of a key by their names, for a sandbox that is to be made.
    pub(crate) fn hold(&self, owner: &KeyId, names: &[String]) -> Result<HeldVolumes, VolumeError> {
        let mut held = HeldVolumes { state: Arc::clone(&self.state), volumes: Vec::new() };
        for name in names {
            let mut state = lock(&self.state);
            let mut own = state.all.values().filter(|volume| volume.owner == *owner);
            let found = own.find(|volume| volume.name.as_str() == name).cloned();
            let found = found.ok_or_else(|| VolumeError::Unknown(name.clone()))?;
            *state.held.entry(found.id.clone()).or_default() += 1;
            drop(state);
            held.volumes.push(found);
        }
        Ok(held)
    }

    /// Removes a volume unless it is held, as while a sandbox is being made with it, or `is_used` says that one has it.
    pub(crate) fn remove(
        &self,
        manager: &Manager,
        volume: &VolumeRecord,
        is_used: impl Fn(&SharedVolumeId) -> bool,
    ) -> Result<(), VolumeError> {
        let mut state = lock(&self.state);
        if state.held.contains_key(&volume.id) || is_used(&volume.id) {
            return Err(VolumeError::InUse(volume.name.clone()));
        }
        self.store.remove_durably(volume.id.as_str())?;
        state.all.remove(&volume.id);
        Ok(manager.remove_shared_volume(&volume.id)?)
    }

    /// Removes the volumes without a record, which a server that was killed while it made or removed one has left.
    /// One whose record cannot be read stays.
    pub(crate) fn remove_unrecorded(&self, manager: &Manager) -> Result<(), VolumeError> {
        let recorded: HashSet<String> = self.store.names()?.into_iter().collect();
        let mut unrecorded = manager.shared_volumes().into_iter().filter(|id| !recorded.contains(id.as_str()));
        Ok(unrecorded.try_for_each(|id| manager.remove_shared_volume(&id))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(home: &std::path::Path) -> (Manager, VolumeIndex) {
        let limits = VolumeLimits { volumes: 2, mib: 1, names: 10 };
        let manager = Manager::open(home).unwrap();
        (manager, VolumeIndex::open(home.join("server/volume-records"), limits).unwrap())
    }

    #[test]
    fn volumes_belong_to_their_key_and_outlive_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let (manager, volumes) = index(home.path());
        let (one, other) = (KeyId("1".into()), KeyId("2".into()));
        let volume = volumes.create(&manager, &one, None, "data").unwrap();
        assert!(matches!(volumes.create(&manager, &one, None, "data"), Err(VolumeError::Taken(_))));
        volumes.create(&manager, &other, None, "data").unwrap();
        volumes.create(&manager, &one, None, "more").unwrap();
        assert!(matches!(volumes.create(&manager, &one, None, "third"), Err(VolumeError::Quota(2))));
        volumes.create(&manager, &one, Some(3), "third").unwrap();
        for bad in ["", "..", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(matches!(volumes.create(&manager, &one, Some(9), bad), Err(VolumeError::Name(_))), "{bad:?}");
        }
        let (_, volumes) = index(home.path());
        assert_eq!(volumes.list(&one).len(), 3);
        assert_eq!(volumes.find(&one, volume.id.as_str()).unwrap().name.as_str(), "data");
        for unknown in [volumes.find(&other, volume.id.as_str()), volumes.find(&one, "../../x")] {
            assert!(matches!(unknown, Err(VolumeError::Unknown(_))));
        }
    }

    #[test]
    fn a_volume_whose_record_cannot_be_read_stays() {
        let home = tempfile::tempdir().unwrap();
        let (manager, volumes) = index(home.path());
        let key = KeyId("1".into());
        let (kept, lost) =
            (volumes.create(&manager, &key, None, "a").unwrap(), volumes.create(&manager, &key, None, "b").unwrap());
        let record = |volume: &VolumeRecord| home.path().join(format!("server/volume-records/{}.json", volume.id));
        std::fs::write(record(&kept), "{").unwrap();
        std::fs::remove_file(record(&lost)).unwrap();
        let (manager, volumes) = index(home.path());
        volumes.remove_unrecorded(&manager).unwrap();
        assert!(manager.shared_volume_path(&kept.id).exists() && !manager.shared_volume_path(&lost.id).exists());
    }

    #[test]
    fn volumes_in_use_are_not_removed() {
        let home = tempfile::tempdir().unwrap();
        let (manager, volumes) = index(home.path());
        let key = KeyId("1".into());
        let volume = volumes.create(&manager, &key, None, "data").unwrap();
        let path = manager.shared_volume_path(&volume.id);
        let names = ["data".to_owned()];
        assert!(matches!(volumes.hold(&KeyId("2".into()), &names), Err(VolumeError::Unknown(_))));
        assert!(volumes.hold(&key, &["data".to_owned(), "missing".to_owned()]).is_err());
        let held = volumes.hold(&key, &names).unwrap();
        assert!(matches!(volumes.remove(&manager, &volume, |_| false), Err(VolumeError::InUse(_))));
        drop(held);
        let (_, held) = volumes.hold_any(&volume.id).unwrap();
        assert!(matches!(volumes.remove(&manager, &volume, |_| false), Err(VolumeError::InUse(_))));
        drop(held);
        assert!(matches!(volumes.remove(&manager, &volume, |_| true), Err(VolumeError::InUse(_))));
        assert!(path.exists());
        volumes.remove(&manager, &volume, |_| false).unwrap();
        assert!(!path.exists() && volumes.list(&key).is_empty());
    }
}
