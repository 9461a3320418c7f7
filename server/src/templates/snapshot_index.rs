//! The snapshots that clients made, in memory as on disk: each create, list and look-up of an alias asks for one key's.

use super::SnapshotRecord;
use crate::{
    access::keys::KeyId,
    store::{Store, StoreError},
};
use sandboxvm_manager::SandboxName;
use std::{
    cmp::Reverse,
    collections::HashMap,
    path::PathBuf,
    sync::{PoisonError, RwLock},
};

#[derive(Debug)]
pub(crate) struct SnapshotIndex {
    records: Store<SnapshotRecord>,
    /// Newest first.
    by_owner: RwLock<HashMap<KeyId, Vec<SnapshotRecord>>>,
}

impl SnapshotIndex {
    /// Reads what is on disk, once.
    pub(crate) fn open(directory: PathBuf) -> Result<Self, StoreError> {
        let records = Store::open(directory)?;
        let mut by_owner: HashMap<KeyId, Vec<SnapshotRecord>> = HashMap::new();
        for record in records.all()? {
            let record: SnapshotRecord = record;
            by_owner.entry(record.owner.clone()).or_default().push(record);
        }
        for own in by_owner.values_mut() {
            own.sort_by_key(|record| Reverse(record.created_at));
        }
        Ok(Self { records, by_owner: RwLock::new(by_owner) })
    }

    /// A key's, newest first.
    pub(crate) fn of(&self, owner: &KeyId) -> Vec<SnapshotRecord> {
        self.by_owner.read().unwrap_or_else(PoisonError::into_inner).get(owner).cloned().unwrap_or_default()
    }

    /// How many a key has.
    pub(crate) fn count(&self, owner: &KeyId) -> usize {
        self.by_owner.read().unwrap_or_else(PoisonError::into_inner).get(owner).map_or(0, Vec::len)
    }

    /// Writes one down, then lets it count.
    pub(crate) fn add(&self, record: SnapshotRecord) -> Result<(), StoreError> {
        self.records.put_durably(record.id.as_str(), &record)?;
        let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
        let own = by_owner.entry(record.owner.clone()).or_default();
        let at = own.partition_point(|other| other.created_at > record.created_at);
        own.insert(at, record);
        Ok(())
    }

    /// Forgets one, whether or not it is there.
    pub(crate) fn remove(&self, owner: &KeyId, id: &SandboxName) -> Result<(), StoreError> {
        self.records.remove_durably(id.as_str())?;
        let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_owner.get_mut(owner) {
            own.retain(|record| record.id != *id);
            if own.is_empty() {
                by_owner.remove(owner);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{store::FORMAT, templates::TemplateId};
    use sandboxvm_manager::SandboxId;
    use std::fs;

    fn record(owner: &str, id: &str, created_at: u64) -> SnapshotRecord {
        SnapshotRecord {
            format: FORMAT,
            id: SandboxName::try_from(id.to_owned()).unwrap(),
            owner: KeyId(owner.into()),
            sandbox: SandboxId::try_from("abcdefgh".to_owned()).unwrap(),
            names: vec![],
            template: TemplateId("base".into()),
            origin: None,
            created_at,
            user: "user".into(),
            workdir: None,
            memory: true,
        }
    }

    #[test]
    fn a_keys_snapshots_are_found_without_the_disk_and_again_by_the_next_server() {
        let dir = tempfile::tempdir().unwrap();
        let index = SnapshotIndex::open(dir.path().join("x")).unwrap();
        for (owner, id, at) in [("1", "snap-b", 20), ("1", "snap-a", 10), ("2", "snap-c", 30), ("1", "snap-d", 40)] {
            index.add(record(owner, id, at)).unwrap();
        }
        let ids = |index: &SnapshotIndex, owner: &str| -> Vec<String> {
            index.of(&KeyId(owner.into())).iter().map(|record| record.id.to_string()).collect()
        };
        assert_eq!(ids(&index, "1"), ["snap-d", "snap-b", "snap-a"]);
        index.remove(&KeyId("1".into()), &record("1", "snap-b", 0).id).unwrap();
        let again = SnapshotIndex::open(dir.path().join("x")).unwrap();
        for index in [&index, &again] {
            assert_eq!(
                (ids(index, "1"), ids(index, "2")),
                (vec!["snap-d".into(), "snap-a".into()], vec!["snap-c".into()])
            );
            assert_eq!((index.count(&KeyId("1".into())), index.count(&KeyId("3".into()))), (2, 0));
        }
        // Nothing of the disk is read for a request.
        fs::remove_dir_all(dir.path().join("x")).unwrap();
        assert_eq!(ids(&again, "1").len(), 2);
    }
}
