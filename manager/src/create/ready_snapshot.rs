//! Ready snapshots: for each kind of machine a snapshot of one that has just booted, so that a new
//! sandbox need not boot. The first process that needs one makes it, while others that need it
//! wait.
//!
//! The kind is everything that could make a difference: kernel, image, agent and VMM by content,
//! vCPUs, memory, disk, host mode, processor and boot of the host (see [`crate::home::host`]).
//! `ready/<key>` is such a snapshot, and its maker locks `ready/<key>.lock`. Each container image adds
//! kinds, so only the snapshots that were used last are kept.

use crate::{
    create::{
        basis::{Basis, new_record},
        error::CreateError,
        machine::{Visibility, boot},
        spec::SandboxSpec,
        staged::Staged,
        warm_up,
    },
    home::{
        content,
        directory::DirectoryError,
        host::{HostIdentity, hex},
        layout::Home,
        locks::{FileLock, LockClass},
    },
    image_defaults::ImageDefaults,
    limits::kept::WantedLimits,
    record::SandboxRecord,
    snapshot::{
        error::SnapshotError,
        lineage::Contents,
        manifest::{FORMAT, SnapshotManifest},
        store::{StoredSnapshot, remove_directory},
        taking,
    },
    supervision::SupervisionSpec,
    workspace::{self, WorkspaceRecord},
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Interval at which waiting processes check whether the maker is done.
const POLL: Duration = Duration::from_millis(20);
/// Maximum number of ready snapshots. One takes some ten MiB.
const KEPT: usize = 32;
const LOCK_SUFFIX: &str = ".lock";

/// Both times of a file: now.
const NOW: Timestamps = {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Timestamps { last_access: now, last_modification: now }
};

/// Identifies a kind of machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadyKey(String);

/// Returns the key of the kind of machine that `spec` asks for on `host`.
pub(crate) fn key(contents: &Contents, spec: &SandboxSpec, host: &HostIdentity) -> ReadyKey {
    let mut hash = Sha256::new();
    let hashes = [&contents.vmm, &contents.kernel, &contents.image, &contents.agent].map(|content| &content.sha256);
    let numbers =
        [u64::from(FORMAT), u64::from(spec.vcpus.get()), spec.memory.bytes(), spec.disk.bytes()].map(|n| n.to_string());
    let mode = host.mode.to_string();
    for part in hashes.into_iter().chain(&numbers).chain([&mode, &host.cpu, &host.boot_id]) {
        hash.update(part);
        hash.update("\n");
    }
    // A machine without a card has the key that it had before there were cards.
    if spec.network.is_some() {
        hash.update("network card\n");
    }
    if spec.image_defaults.is_some() {
        hash.update("container image\n");
    }
    // The files in the slots are not part of the machine, and neither is where they are mounted.
    if let Some(workspace) = &spec.workspace {
        hash.update(format!("slots {}\n", workspace.slots.len()));
    }
    // The same holds for volumes, except that a driver sees whether it can write one.
    for volume in spec.mounts.volumes() {
        hash.update(if volume.read_only { "volume to read\n" } else { "volume\n" });
    }
    for word in warm_up::COMMANDS.into_iter().flatten() {
        hash.update(word);
        hash.update("\0");
    }
    ReadyKey(hex(&hash.finalize()[..16]))
}

fn path(home: &Home, key: &ReadyKey) -> PathBuf {
    home.ready().join(&key.0)
}

/// Returns the ready snapshot of this kind, and makes it if there is none that can be read. Cancel
/// safe.
pub(crate) async fn ensure(
    home: &Home,
    key: &ReadyKey,
    basis: &Basis,
    spec: &SandboxSpec,
) -> Result<StoredSnapshot, CreateError> {
    loop {
        if let Some(snapshot) = existing(home, key)? {
            return Ok(snapshot);
        }
        let Some(_lock) =
            FileLock::try_named(LockClass::ReadySnapshot, &home.ready().join(format!("{}{LOCK_SUFFIX}", key.0)))?
        else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        if existing(home, key)?.is_none() {
            make(home, key, basis, spec).await?;
            evict(home, KEPT);
        }
    }
}

/// Opens the ready snapshot. Removes one that cannot be read.
fn existing(home: &Home, key: &ReadyKey) -> Result<Option<StoredSnapshot>, SnapshotError> {
    match StoredSnapshot::open(path(home, key)) {
        Ok(snapshot) => {
            // The time of the last use. Without it, the snapshot only looks older than it is.
            let _ = rustix::fs::utimensat(CWD, path(home, key), &NOW, AtFlags::SYMLINK_NOFOLLOW);
            Ok(snapshot)
        }
        Err(_) => remove(home, key).map(|()| None),
    }
}

/// Removes ready snapshots until `kept` are left, those first that were not used for the longest time.
/// Processes that have one open, and running machines, keep its files.
fn evict(home: &Home, kept: usize) {
    let used = |path: PathBuf| Some((path.metadata().ok()?.modified().ok()?, path));
    let entries = fs::read_dir(home.ready()).into_iter().flatten().flatten();
    let mut snapshots: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).filter_map(used).collect();
    snapshots.sort();
    let excess = snapshots.len().saturating_sub(kept);
    for (_, path) in snapshots.drain(..excess) {
        // What cannot be removed takes space, and is tried again.
        let _ = remove_directory(home, path);
    }
}

/// Returns the directories of the ready snapshots of these container images, by the digests of their manifests.
pub(crate) fn of_images(home: &Home, images: &[String]) -> Vec<PathBuf> {
    let digits: HashSet<&str> = images.iter().filter_map(|digest| digest.strip_prefix("sha256:")).collect();
    if digits.is_empty() {
        return Vec::new();
    }
    // The disk of an image is named after it.
    let is_of = |path: &PathBuf| {
        let snapshot = StoredSnapshot::open(path.clone()).ok().flatten();
        let disk = snapshot.and_then(|snapshot| snapshot.manifest.contents.image.path.file_stem().map(OsString::from));
        disk.is_some_and(|disk| disk.to_str().is_some_and(|disk| digits.contains(disk)))
    };
    let entries = fs::read_dir(home.ready()).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).filter(is_of).collect()
}

/// Removes the ready snapshots of these container images. Running machines keep their files.
pub(crate) fn remove_of_images(home: &Home, images: &[String]) -> Result<(), SnapshotError> {
    of_images(home, images).into_iter().try_for_each(|path| remove_directory(home, path).map(drop))
}

/// Removes a ready snapshot that turned out to be unusable. Running machines keep its files.
pub(crate) fn remove(home: &Home, key: &ReadyKey) -> Result<(), SnapshotError> {
    remove_directory(home, path(home, key)).map(drop)
}

/// Boots a machine in staging, which no other process sees, warms it up, and takes its snapshot.
async fn make(home: &Home, key: &ReadyKey, basis: &Basis, spec: &SandboxSpec) -> Result<(), CreateError> {
    let limits = WantedLimits::default();
    let services = SupervisionSpec::default();
    // The file system of the image is part of the key, and so is whether it is a container image. What
    // it says about processes is not.
    let (env, image_defaults) = (Vec::new(), spec.image_defaults.as_ref().map(|_| ImageDefaults::default()));
    let plain = SandboxSpec {
        name: None,
        env,
        image_defaults,
        ephemeral: false,
        limits,
        services,
        read_only_root: false,
        ..spec.clone()
    };
    // The guest reads slots and volumes when they are mounted, which is never done here. So the machines
    // that are restored can have any files in their place.
    let slots = spec.workspace.as_ref().map(|workspace| WorkspaceRecord::empty(workspace.slots.len()));
    let record = SandboxRecord { workspace: slots.clone(), ..new_record(&plain, basis)? };
    let staged = Staged::begin(home, record)?;
    if let Some(slots) = &slots {
        workspace::files::make_empty(staged.directory(), slots)?;
    }
    let mut started = boot(staged, basis, spec.boot_timeout, Visibility::Hidden)?;
    let taken: Result<(), CreateError> = async {
        started.ready().await?;
        warm_up::up(&started.sandbox().directory).await?;
        let sandbox = started.sandbox();
        let change = sandbox.change().await?;
        taking::take(&change, None, &path(home, key), taking::Earlier::Stays).await?;
        Ok(())
    }
    .await;
    let finished = started.finish().await;
    taken?;
    Ok(finished?)
}

/// Removes ready snapshots from which no new sandbox can start any more: made before a restart of
/// the host, or from files that were replaced since. Returns their number.
pub(crate) fn prune(home: &Home, only_say: bool) -> Result<usize, SnapshotError> {
    let ready = home.ready();
    let here = HostIdentity::read()?;
    let entries = fs::read_dir(&ready).map_err(|error| DirectoryError::new("list", &ready, error))?;
    let mut removed = 0;
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_stale = if path.is_dir() {
            !matches!(StoredSnapshot::open(path.clone()), Ok(Some(snapshot)) if is_of_use(home, &snapshot.manifest, &here))
        } else {
            is_abandoned_lock(&path)?
        };
        if !is_stale {
            continue;
        }
        removed += 1;
        if only_say {
        } else if path.is_dir() {
            remove_directory(home, path)?;
        } else {
            fs::remove_file(&path).map_err(|error| DirectoryError::new("remove", path, error))?;
        }
    }
    Ok(removed)
}

fn is_of_use(home: &Home, manifest: &SnapshotManifest, here: &HostIdentity) -> bool {
    let Contents { vmm, kernel, image, agent } = &manifest.contents;
    let is_same = |content: &content::Content| content::at(home, &content.path).is_ok_and(|now| now == *content);
    manifest.host == *here && [vmm, kernel, image, agent].into_iter().all(is_same)
}

/// Returns true for the lock file of a maker that no process holds, whose snapshot exists or was
/// given up.
fn is_abandoned_lock(path: &Path) -> Result<bool, DirectoryError> {
    Ok(path.to_string_lossy().ends_with(LOCK_SUFFIX) && FileLock::try_named(LockClass::ReadySnapshot, path)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mounts::{
            MountSpec, Mounts, Tmpfs,
            spec::tests::{tmpfs, volume},
        },
        network::spec::NetworkSpec,
        snapshot::{lineage::tests::contents, manifest::tests::example},
        workspace::{WorkspaceSpec, tests::example as example_workspace},
    };
    use sandboxvm_protocol::egress::Reach;
    use std::time::SystemTime;

    #[test]
    fn key_covers_everything_that_makes_a_difference() {
        let host = example("abcdefgh").host;
        let base = key(&contents(), &SandboxSpec::default(), &host);
        assert_eq!(base, key(&contents(), &SandboxSpec { name: None, ..SandboxSpec::default() }, &host));
        let mut other = contents();
        other.vmm.sha256 = "1".repeat(64);
        assert_ne!(base, key(&other, &SandboxSpec::default(), &host));
        // The path of a file is not part of the key.
        let mut moved = contents();
        moved.kernel.path = "/elsewhere".into();
        assert_eq!(base, key(&moved, &SandboxSpec::default(), &host));
        let larger = SandboxSpec { memory: (512 << 20).try_into().unwrap(), ..SandboxSpec::default() };
        assert_ne!(base, key(&contents(), &larger, &host));
        let network = Some(NetworkSpec { reach: Reach::Public, ..NetworkSpec::default() });
        let with_card = key(&contents(), &SandboxSpec { network, ..SandboxSpec::default() }, &host);
        assert_ne!(base, with_card);
        let other = SandboxSpec { network: Some(NetworkSpec::default()), ..SandboxSpec::default() };
        assert_eq!(with_card, key(&contents(), &other, &host), "what it may reach is not part of the machine");
        let with_slots = |workspace| key(&contents(), &SandboxSpec { workspace, ..SandboxSpec::default() }, &host);
        let one = with_slots(Some(example_workspace(1)));
        assert!(one != base && one != with_slots(Some(example_workspace(2))));
        let elsewhere = WorkspaceSpec { at: "/src".into(), slots: vec!["/other".into()], ..example_workspace(1) };
        assert_eq!(one, with_slots(Some(elsewhere)), "what is in the slots is not part of the machine");
        let with_mounts = |mounts: Vec<MountSpec>, read_only_root| {
            let mounts = Mounts::new(mounts).unwrap();
            key(&contents(), &SandboxSpec { mounts, read_only_root, ..SandboxSpec::default() }, &host)
        };
        let one = with_mounts(vec![volume("a", "/a", false)], false);
        let read_only = with_mounts(vec![volume("a", "/a", true)], false);
        assert!(one != base && one != read_only && read_only != base);
        assert_eq!(one, with_mounts(vec![volume("b", "/b", false), tmpfs("/c", Tmpfs::default())], true));
        assert_eq!(base, with_mounts(vec![tmpfs("/c", Tmpfs::default())], true), "a mount is not part of the machine");
        assert_ne!(base, key(&contents(), &SandboxSpec::default(), &HostIdentity { boot_id: "x".into(), ..host }));
    }

    #[test]
    fn the_snapshots_that_were_used_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let age = |name: &str, seconds: u64| {
            let path = home.ready().join(name);
            fs::create_dir(&path).unwrap();
            let time = SystemTime::now() - Duration::from_secs(seconds);
            fs::File::open(path).unwrap().set_modified(time).unwrap();
        };
        for (name, seconds) in [("a", 30), ("b", 10), ("c", 20)] {
            age(name, seconds);
        }
        fs::write(home.ready().join("a.lock"), "").unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(home.ready()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        evict(&home, 3);
        assert_eq!(names(), ["a", "a.lock", "b", "c"]);
        evict(&home, 1);
        assert_eq!(names(), ["a.lock", "b"]);
    }

    #[test]
    fn maker_lock_is_exclusive_and_abandoned_locks_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.lock");
        let held = FileLock::try_named(LockClass::ReadySnapshot, &path).unwrap().unwrap();
        assert!(FileLock::try_named(LockClass::ReadySnapshot, &path).unwrap().is_none());
        assert!(!is_abandoned_lock(&path).unwrap());
        drop(held);
        assert!(is_abandoned_lock(&path).unwrap());
    }
}
