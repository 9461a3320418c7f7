//! What one key may have, checked before anything is made for it: sandboxes, snapshots, disk space, audit logs.

use super::{builds::known::states_of, entry::Entry, error::RegistryError, record::Phase, state::Registry};
use crate::{
    access::keys::{Key, KeyId},
    quotas::count::Reserved,
};
use std::{io, time::Duration};

const MIB: u64 = 1 << 20;
/// Between two removals of old audit logs.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

impl Registry {
    /// As many sandboxes as this key may have.
    pub(super) fn sandboxes_of(&self, key: &Key) -> u32 {
        key.limits.sandboxes.unwrap_or(self.sandboxes_per_key)
    }

    /// A place for `more` sandboxes of this key.
    pub(super) fn reserve(&self, key: &Key, more: u32) -> Result<Reserved<'_>, RegistryError> {
        self.quota
            .reserve(&key.id, more, self.sandboxes_of(key), || self.list(&key.id).len())
            .map_err(RegistryError::Quota)
    }

    /// A place for one more snapshot of this key.
    pub(super) fn reserve_snapshot(&self, key: &Key) -> Result<Reserved<'_>, RegistryError> {
        let most = key.limits.snapshots.unwrap_or(self.storage.snapshots);
        let there = || self.snapshots.count(&key.id);
        self.snapshot_quota.reserve(&key.id, 1, most, there).map_err(RegistryError::SnapshotQuota)
    }

    /// Refuses what would write a sandbox's memory to the disk where its key may not have so much more there.
    pub(super) async fn check_storage(&self, key: &Key, entry: &Entry) -> Result<(), RegistryError> {
        self.check_storage_for(key, self.sandbox(entry)?.record().memory_bytes.bytes()).await
    }

    /// Refuses what would take so many bytes more where its key may not have them.
    pub(super) async fn check_storage_for(&self, key: &Key, more: u64) -> Result<(), RegistryError> {
        let most_mib = key.limits.storage_mib.unwrap_or(self.storage.mib);
        let mut used = self.stored_by(&key.id).await?;
        let is_too_much = |used: u64| used.saturating_add(more) > most_mib.saturating_mul(MIB);
        // What only makes the builds of this key faster makes room first.
        if is_too_much(used) && self.evict_ready_snapshots(self.builds.templates.images_of_only(&key.id)) {
            used = self.stored_by(&key.id).await?;
        }
        if is_too_much(used) {
            return Err(RegistryError::StorageQuota { used_mib: used / MIB, more_mib: more / MIB, most_mib });
        }
        Ok(())
    }

    /// Bytes that a key's sandboxes, snapshots, builds, kept states of builds, uploads, and the ready snapshots of images that
    /// its builds begin with take on the disk.
    pub(super) async fn stored_by(&self, owner: &KeyId) -> Result<u64, RegistryError> {
        let mut snapshots: Vec<_> = self.snapshots.of(owner).into_iter().map(|snapshot| snapshot.id).collect();
        let mut sandboxes = Vec::new();
        for entry in self.list(owner) {
            sandboxes.push(entry.id.clone());
            if let Phase::Paused { snapshot } = entry.record().phase {
                snapshots.push(snapshot);
            }
        }
        snapshots.extend(self.builds.templates.snapshots(Some(owner)));
        let states = states_of(owner);
        let all = self.manager.snapshots()?.into_iter().filter_map(|manifest| manifest.name);
        snapshots.extend(all.filter(|name| name.as_str().starts_with(&states)));
        let images: Vec<_> = self.builds.templates.images(Some(owner)).into_iter().collect();
        let uploads = self.builds.uploads.bytes_of(owner);
        let manager = self.manager.clone();
        // A file system that is slow to answer must not keep requests waiting.
        let counted = tokio::task::spawn_blocking(move || manager.disk_usage(&sandboxes, &snapshots, &images)).await;
        counted.map(|bytes| bytes.saturating_add(uploads)).map_err(|error| RegistryError::Task(io::Error::other(error)))
    }

    /// Refuses a new sandbox to a key whose logs take all that they may.
    pub(super) async fn check_audit(&self, key: &Key) -> Result<(), RegistryError> {
        let most_mib = key.limits.audit_mib.unwrap_or(self.trails.mib_per_key());
        let live = || self.list(&key.id).iter().map(|entry| entry.id.clone()).collect();
        let used = self.trails.logged_by(&self.manager, &key.id, live).await.map_err(RegistryError::Task)?;
        if used >= most_mib.saturating_mul(MIB) {
            return Err(RegistryError::AuditQuota { used_mib: used / MIB, most_mib });
        }
        Ok(())
    }

    /// Removes old audit logs from time to time; never returns.
    pub(crate) async fn keep_trails(&self) {
        loop {
            // Some files for each sandbox of a month: off this thread while others have requests on it.
            match tokio::task::block_in_place(|| self.trails.prune(&self.manager)) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed old audit logs"),
                Err(error) => tracing::warn!(%error, "cannot remove old audit logs"),
            }
            self.trails.forget_old_counts();
            tokio::time::sleep(PRUNE_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::keys::KeyLimits,
        config::Config,
        registry::record::{Record, tests::example},
    };
    use sandboxvm_images::bundle::{Bundle, BundleSources};
    use sandboxvm_manager::{Manager, SandboxId, SupervisorProgram};
    use serde_json::json;
    use std::{
        fs::{self, DirBuilder, File},
        os::unix::fs::DirBuilderExt,
        path::Path,
        sync::Arc,
        time::SystemTime,
    };
    use tokio::time::timeout;

    const LIVE: &str = "abcdefghabcdefgh";
    const GONE: &str = "hgfedcbahgfedcba";

    fn key(limits: KeyLimits) -> Key {
        let id = KeyId("1".into());
        Key { id: id.clone(), account: id, limits }
    }

    /// A home with one sandbox of key 1 with 256 MiB of memory, and a registry that knows it.
    fn registry(home: &Path, config: &Config) -> Registry {
        let manager = Manager::open(home).unwrap();
        let file =
            |path: &str| json!({"path": path, "identity": {"device": 1, "inode": 2, "size": 3, "modified_ns": 4}});
        let record = json!({
            "format": 1, "id": LIVE, "name": null, "created_at": "2023-11-14T22:13:20.123Z", "vcpus": 1,
            "memory_bytes": 256 << 20, "disk_bytes": 2_u64 << 30, "kernel": file("/b/vmlinux"), "image": file("/b/base.erofs"),
            "agent": file("/b/agent.erofs"), "env": [], "ephemeral": false,
        });
        let directory = home.join("sandboxes").join(LIVE);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).unwrap();
        fs::write(directory.join("config.json"), record.to_string()).unwrap();
        let supervisor = SupervisorProgram { program: "/nonexistent".into(), arguments: Vec::new() };
        let registry = Registry::open(config, manager, Bundle::find(&BundleSources::default()), supervisor).unwrap();
        registry.add_for_test(Record { owner: KeyId("1".into()), ..example(LIVE) });
        registry
    }

    fn id(text: &str) -> SandboxId {
        SandboxId::try_from(text.to_owned()).unwrap()
    }

    fn log(registry: &Registry, sandbox: &str, mib: usize) {
        fs::write(registry.manager.trail(&id(sandbox)).path(), vec![b'\n'; mib << 20]).unwrap();
    }

    #[tokio::test]
    async fn memory_is_written_to_disk_only_within_the_share_of_its_key() {
        let home = tempfile::tempdir().unwrap();
        let registry = registry(home.path(), &Config { storage_per_key: 300, ..Config::default() });
        let entry = registry.entry(&id(LIVE)).unwrap();
        let check = async |limits| registry.check_storage(&key(limits), &entry).await;
        check(KeyLimits::default()).await.unwrap();
        let own = |mib| KeyLimits { storage_mib: Some(mib), ..KeyLimits::default() };
        let refused = check(own(64)).await.unwrap_err();
        assert!(matches!(refused, RegistryError::StorageQuota { more_mib: 256, most_mib: 64, .. }), "{refused}");
        // What the sandbox has on its disk counts as well.
        fs::write(home.path().join("sandboxes").join(LIVE).join("disk.1"), vec![1; 50 << 20]).unwrap();
        let refused = check(KeyLimits::default()).await.unwrap_err();
        assert!(matches!(refused, RegistryError::StorageQuota { used_mib: 50.., .. }), "{refused}");
        check(own(320)).await.unwrap();
    }

    /// Writes a ready snapshot of an image, as the manager makes them, with 40 MiB of memory.
    fn ready_snapshot(home: &Path, name: &str, image: &str) -> std::path::PathBuf {
        let content = |path: &str| json!({"path": path, "sha256": "0".repeat(64)});
        let digits = image.strip_prefix("sha256:").unwrap();
        let manifest = json!({
            "format": 1, "id": LIVE, "name": null, "created_at": "2023-11-14T22:13:20.123Z", "sandbox": LIVE, "parent": null,
            "vcpus": 1, "memory_bytes": 64 << 20, "disk_bytes": 2_u64 << 30, "env": [],
            "host": {"mode": "vmx", "cpu": "c", "boot_id": "b"},
            "contents": {"vmm": content("/b/vmm"), "kernel": content("/b/vmlinux"), "agent": content("/b/agent"),
                "image": content(&format!("/home/images/disks/{digits}.erofs"))},
            "memory": [{"name": "memory.0", "size": 64 << 20}], "disk": ["disk.0"],
        });
        let path = home.join("ready").join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).unwrap();
        fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
        fs::write(path.join("memory.0"), vec![1; 40 << 20]).unwrap();
        path
    }

    /// Writes down a build of a key's template that begins with an image.
    fn build(registry: &Registry, key: &Key, name: &str, image: &str) {
        let (template, build) = registry.request_build(key, name, &[], None, None).unwrap();
        let begins = |template: &mut crate::templates::built::BuiltTemplate| {
            template.build_mut(&build.id).unwrap().image = Some(image.to_owned());
        };
        registry.builds.templates.change(&template.id, begins).unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ready_snapshots_of_images_count_for_the_keys_that_build_on_them_and_make_room() {
        let home = tempfile::tempdir().unwrap();
        let registry = registry(home.path(), &Config::default());
        let other = Key { id: KeyId("2".into()), account: KeyId("2".into()), limits: KeyLimits::default() };
        let own = key(KeyLimits { storage_mib: Some(64), ..KeyLimits::default() });
        let [mine, shared, foreign] = ["a", "b", "c"].map(|digit| format!("sha256:{}", digit.repeat(64)));
        let ready = [("one", &mine), ("two", &shared), ("three", &foreign)]
            .map(|(name, image)| ready_snapshot(home.path(), name, image));
        let used = async |key: &Key| registry.stored_by(&key.id).await.unwrap() >> 20;
        let before = used(&own).await;
        build(&registry, &own, "first", &mine);
        build(&registry, &own, "second", &shared);
        build(&registry, &other, "third", &shared);
        assert_eq!((used(&own).await - before, used(&other).await), (80, 40));
        // They make room before anything is refused, except those that another key builds on.
        registry.check_storage_for(&own, 20 << 20).await.unwrap();
        assert_eq!(ready.each_ref().map(|path| path.exists()), [false, true, true]);
        assert_eq!(used(&own).await - before, 40);
        let refused = registry.check_storage_for(&own, 30 << 20).await.unwrap_err();
        assert!(matches!(refused, RegistryError::StorageQuota { used_mib: 40.., .. }), "{refused}");
        // They are removed with the last build that begins with the image.
        assert!(registry.remove_built(&own, "second").unwrap() && ready[1].exists());
        assert!(registry.remove_built(&other, "third").unwrap() && !ready[1].exists());
        assert!(ready[2].exists());
    }

    #[tokio::test]
    async fn snapshots_under_way_count_for_the_limit_of_their_key() {
        let home = tempfile::tempdir().unwrap();
        let registry = registry(home.path(), &Config { snapshots_per_key: 2, ..Config::default() });
        let key = key(KeyLimits::default());
        let begun = [registry.reserve_snapshot(&key).unwrap(), registry.reserve_snapshot(&key).unwrap()];
        let refused = registry.reserve_snapshot(&key).unwrap_err();
        assert!(matches!(refused, RegistryError::SnapshotQuota(2)), "{refused}");
        drop(begun);
        drop(registry.reserve_snapshot(&key).unwrap());
    }

    #[tokio::test]
    async fn logs_of_sandboxes_that_run_and_that_are_gone_count_for_their_key() {
        let home = tempfile::tempdir().unwrap();
        let registry = registry(home.path(), &Config { audit_per_key: 4, ..Config::default() });
        log(&registry, LIVE, 2);
        log(&registry, GONE, 2);
        // A count is believed for some seconds, so each question is that of another registry.
        registry.check_audit(&key(KeyLimits::default())).await.unwrap();
        let registry = super::tests::registry(home.path(), &Config { audit_per_key: 4, ..Config::default() });
        registry.trails.outlives(&id(GONE), &KeyId("1".into())).unwrap();
        let refused = registry.check_audit(&key(KeyLimits::default())).await.unwrap_err();
        assert!(matches!(refused, RegistryError::AuditQuota { used_mib: 4.., most_mib: 4 }), "{refused}");
        registry.check_audit(&key(KeyLimits { audit_mib: Some(5), ..KeyLimits::default() })).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_removes_old_logs_and_keeps_others() {
        let home = tempfile::tempdir().unwrap();
        let registry = Arc::new(registry(home.path(), &Config { audit_days: 1, ..Config::default() }));
        log(&registry, LIVE, 1);
        log(&registry, GONE, 1);
        registry.trails.outlives(&id(GONE), &KeyId("1".into())).unwrap();
        let path = registry.manager.trail(&id(GONE)).path().to_owned();
        let old = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        timeout(Duration::from_millis(300), registry.keep_trails()).await.unwrap_err();
        assert!(!path.exists() && registry.manager.trail(&id(LIVE)).exists());
    }
}
