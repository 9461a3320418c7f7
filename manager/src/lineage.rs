//! `lineage.json`: what a sandbox's disk and memory are made of, file by file, and where it began. Snapshot, fork and
//! reset change it; each does so while it holds the sandbox's change lock ([`ChangeLock`]).
//!
//! A change gives the VMM a file for its disk: an empty one for the top, or one in which older layers are merged. Nobody
//! can write a record and make a VMM use a file in one step, so the record says beforehand what *may* come to be
//! (`next`), and which it is can be seen at any later time: a file is a layer from when the VMM writes its header. Whoever
//! is killed in between loses nothing.

use crate::{
    content::Content,
    directory::{DirectoryError, SandboxDirectory},
    snapshot::{error::SnapshotError, seal::Seals},
    state,
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use sandboxvm_protocol::identity::{SandboxId, SandboxName};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::PathBuf,
    time::Duration,
};

const LINEAGE: &str = "lineage.json";
const CHANGE_LOCK: &str = "change.lock";
/// The raw image below the disk's layers.
pub(crate) const TEMPLATE: &str = "template";
/// The base image and the agent disk, where the bundle is on the home's file system: an upgrade replaces them there.
pub(crate) const IMAGE: &str = "image";
pub(crate) const AGENT: &str = "agent";
/// A record has a line per file.
const MAX_LINEAGE: u64 = 1 << 20;
const FORMAT: u32 = 1;
/// First bytes of a layer that a VMM uses (docs/snapshot-format.md).
const LAYER_MAGIC: &[u8; 8] = b"SBVMLAYR";
const POLL: Duration = Duration::from_millis(10);

/// Why a sandbox's lineage is not known.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Made before there were snapshots.
    #[error("the sandbox was created by an older sandboxvm, which kept no record of its disk layers")]
    Missing,
    /// Not readable.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Written by a newer sandboxvm.
    #[error("{} has unsupported format {found}: this build reads {FORMAT}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// The four files of the bundle that a machine was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The VMM.
    pub vmm: Content,
    /// The guest kernel.
    pub kernel: Content,
    /// The base image.
    pub image: Content,
    /// The agent disk.
    pub agent: Content,
}

/// How a sandbox began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    /// Its kernel booted.
    Boot,
    /// From a snapshot, whose files are here too.
    Snapshot {
        id: SandboxId,
        /// `None`: the image's ready snapshot.
        name: Option<SandboxName>,
        state: String,
        memory: Vec<String>,
        disk: Vec<String>,
    },
    /// As a copy of another while that one ran.
    Fork { of: SandboxId },
}

/// Files of a disk and of the snapshot that the next one is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Files {
    /// Oldest first; the last is the one being written.
    pub(crate) disk: Vec<String>,
    /// The memory files of the VMM's last snapshot. `None` when a snapshot was begun and nobody saw its end: only the
    /// VMM knows then, and the next snapshot is written whole.
    pub(crate) baseline: Option<Vec<String>>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    format: u32,
    pub(crate) contents: Contents,
    pub(crate) origin: Origin,
    /// The snapshot that `baseline` is of.
    pub(crate) parent: Option<SandboxId>,
    pub(crate) files: Files,
    /// In force as soon as all of its disk files are in use.
    next: Option<Files>,
    /// Its kernel booted from the sandbox's own disk since it began: its VMM cannot put it back to `origin` in place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) rebooted: bool,
    /// Seals that files have from a snapshot, so that the next need not read them again.
    #[serde(default)]
    pub(crate) seals: Seals,
}

impl Lineage {
    pub(crate) fn new(contents: Contents, origin: Origin, parent: Option<SandboxId>, files: Files) -> Self {
        Self { format: FORMAT, contents, origin, parent, files, next: None, rebooted: false, seals: Seals::default() }
    }

    pub(crate) fn rebooted(self) -> Self {
        Self { rebooted: true, ..self }
    }

    pub(crate) fn with_seals(self, seals: Seals) -> Self {
        let mut lineage = Self { seals, ..self };
        lineage.forget_seals();
        lineage
    }

    /// Reads the record and decides what became of a change that nobody finished. Under the change lock, and after a
    /// VMM that lives has answered something: then it has carried out all that was asked before.
    pub(crate) fn read(directory: &SandboxDirectory) -> Result<Self, LineageError> {
        let path = || directory.path().join(LINEAGE);
        let json = match directory.read(LINEAGE, MAX_LINEAGE) {
            Ok(json) => json,
            Err(error) if error.is_not_found() && directory.exists() => return Err(LineageError::Missing),
            Err(error) => return Err(error.into()),
        };
        let mut lineage: Self =
            serde_json::from_slice(&json).map_err(|source| LineageError::Damaged { path: path(), source })?;
        if lineage.format != FORMAT {
            return Err(LineageError::Format { path: path(), found: lineage.format });
        }
        if lineage.next.is_some() {
            lineage.conclude(directory)?;
        }
        Ok(lineage)
    }

    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), LineageError> {
        Ok(directory.replace(LINEAGE, &self.json(directory)?)?)
    }

    /// Writes that of a sandbox which is just being made. Not synced: a host that loses power now loses the whole sandbox,
    /// and a sync takes as long as everything else together.
    pub(crate) fn write_first(&self, directory: &SandboxDirectory) -> Result<(), LineageError> {
        let json = self.json(directory)?;
        let mut file = directory.create_file(LINEAGE)?;
        Ok(file.write_all(&json).map_err(|error| directory.error("write", LINEAGE, error))?)
    }

    fn json(&self, directory: &SandboxDirectory) -> Result<Vec<u8>, LineageError> {
        serde_json::to_vec_pretty(self)
            .map_err(|source| LineageError::Damaged { path: directory.path().join(LINEAGE), source })
    }

    /// Records that `next` may come to be, before the VMM is asked for it.
    pub(crate) fn announce(&mut self, directory: &SandboxDirectory, next: Files) -> Result<(), LineageError> {
        self.next = Some(next);
        self.write(directory)
    }

    /// Makes what was announced the truth if the disk files that it adds are in use, and forgets it otherwise.
    pub(crate) fn conclude(&mut self, directory: &SandboxDirectory) -> Result<(), LineageError> {
        if let Some(next) = self.next.take() {
            // The top first: where it is new, it tells alone.
            let mut added = next.disk.iter().rev().filter(|name| !self.files.disk.contains(name)).peekable();
            let mut in_use = added.peek().is_some();
            for name in added {
                in_use = in_use && is_in_use(directory, name)?;
            }
            if in_use {
                self.files = next;
            }
            self.forget_seals();
            self.write(directory)?;
        }
        self.tidy(directory)
    }

    /// The change was carried out; `files` is what came of it.
    pub(crate) fn complete(&mut self, directory: &SandboxDirectory, files: Files) -> Result<(), LineageError> {
        self.files = files;
        self.next = None;
        self.forget_seals();
        self.write(directory)?;
        self.tidy(directory)
    }

    /// Refuses files of the snapshot it began from that are not what they were.
    pub(crate) async fn check_origin(&self, directory: &SandboxDirectory) -> Result<(), SnapshotError> {
        let Origin::Snapshot { state, memory, disk, .. } = &self.origin else { return Ok(()) };
        for name in memory.iter().chain(disk).chain([state]) {
            self.seals.check(directory, name, &directory.open_shared(name)?).await?;
        }
        Ok(())
    }

    /// All files that a part of the record names.
    fn named(&self) -> HashSet<&str> {
        let mut named: HashSet<&str> = HashSet::new();
        if let Origin::Snapshot { state, memory, disk, .. } = &self.origin {
            named.insert(state);
            named.extend(memory.iter().chain(disk).map(String::as_str));
        }
        for files in std::iter::once(&self.files).chain(&self.next) {
            named.extend(files.disk.iter().chain(files.baseline.iter().flatten()).map(String::as_str));
        }
        named
    }

    /// Forgets the seals of files that are taken away: their names are given to others.
    fn forget_seals(&mut self) {
        let mut seals = std::mem::take(&mut self.seals);
        let named = self.named();
        seals.retain(|file| named.contains(file));
        self.seals = seals;
    }

    /// Takes away files that no part of the record names.
    fn tidy(&self, directory: &SandboxDirectory) -> Result<(), LineageError> {
        let named = self.named();
        for name in directory.names()? {
            if Kind::of(&name).is_some() && !named.contains(name.as_str()) {
                directory.unlink(&name)?;
            }
        }
        Ok(())
    }
}

/// What a numbered file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    State,
    Memory,
    Disk,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::State => "state.",
            Self::Memory => "memory.",
            Self::Disk => "disk.",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::State, Self::Memory, Self::Disk].into_iter().find(|kind| {
            let number = name.strip_prefix(kind.prefix());
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }

    /// The file number `number` of this kind.
    pub(crate) fn name(self, number: usize) -> String {
        format!("{}{number}", self.prefix())
    }
}

/// Keeps the read-only disks of a machine, where that can be done without copying.
pub(crate) fn keep_disks(directory: &SandboxDirectory, agent: &File, image: &File) -> Result<(), DirectoryError> {
    for (file, name) in [(agent, AGENT), (image, IMAGE)] {
        directory.unlink(name)?;
        // Otherwise they are found where they were, as long as they are there.
        let _ = directory.link(file, name);
    }
    Ok(())
}

/// Links everything besides layers and memory that a copy of a machine, or a snapshot of it, is made of.
pub(crate) fn share_disks(from: &SandboxDirectory, to: &SandboxDirectory) -> Result<(), DirectoryError> {
    for name in [AGENT, IMAGE].into_iter().filter(|name| from.has(name)) {
        to.link_from(from, name, name)?;
    }
    to.link_from(from, TEMPLATE, TEMPLATE)
}

/// A name of this kind that no file of `directory` has. Under the change lock, or while nobody else sees it.
pub(crate) fn free_name(directory: &SandboxDirectory, kind: Kind) -> Result<String, DirectoryError> {
    let names = directory.names()?;
    let numbers = names.iter().filter_map(|name| name.strip_prefix(kind.prefix())?.parse::<usize>().ok());
    Ok(kind.name(numbers.max().map_or(0, |last| last + 1)))
}

/// Opens files that are never written again, in order.
pub(crate) fn open_all(directory: &SandboxDirectory, names: &[String]) -> Result<Vec<File>, DirectoryError> {
    names.iter().map(|name| directory.open_shared(name)).collect()
}

/// Whether the VMM took this file as a layer: it wrote a header, and, while it lives, has it open.
fn is_in_use(directory: &SandboxDirectory, name: &str) -> Result<bool, DirectoryError> {
    let file = match directory.open_shared(name) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut magic = [0; LAYER_MAGIC.len()];
    if file.read_exact_at(&mut magic, 0).is_err() || &magic != LAYER_MAGIC {
        return Ok(false);
    }
    match live_vmm(directory)? {
        Some(pid) => Ok(has_open(pid, &file)),
        None => Ok(true),
    }
}

/// PID of the sandbox's VMM while it lives.
pub(crate) fn live_vmm(directory: &SandboxDirectory) -> Result<Option<u32>, DirectoryError> {
    let Some(status) = state::status(directory)? else { return Ok(None) };
    Ok(crate::lock::is_holder(directory, status.pid).then_some(status.pid))
}

fn has_open(pid: u32, file: &File) -> bool {
    let Ok(wanted) = file.metadata() else { return false };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    // The link is followed: what is asked is the file behind the descriptor, whatever it is called by now.
    descriptors
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .any(|metadata| (metadata.dev(), metadata.ino()) == (wanted.dev(), wanted.ino()))
}

/// Held by whoever changes what a sandbox is made of.
#[derive(Debug)]
pub(crate) struct ChangeLock(#[expect(dead_code, reason = "held for its flock")] OwnedFd);

impl ChangeLock {
    /// Waits for whoever else changes the sandbox. Cancel safe.
    pub(crate) async fn take(directory: &SandboxDirectory) -> Result<Self, DirectoryError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(directory.fd(), CHANGE_LOCK, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| directory.error("open", CHANGE_LOCK, error))?;
        loop {
            match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(fd)),
                Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(POLL).await,
                Err(error) => return Err(directory.error("lock", CHANGE_LOCK, error)),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::snapshot::seal::Seal;

    pub(crate) fn contents() -> Contents {
        let content = |path: &str| Content { path: path.into(), sha256: "0".repeat(64) };
        Contents { vmm: content("v"), kernel: content("k"), image: content("i"), agent: content("a") }
    }

    fn files(disk: &[&str]) -> Files {
        Files { disk: disk.iter().map(|name| (*name).to_owned()).collect(), baseline: Some(vec![]) }
    }

    fn directory() -> (tempfile::TempDir, SandboxDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        (home, directory)
    }

    #[test]
    fn a_change_that_nobody_finished_is_judged_by_whether_its_layer_was_begun() {
        let (_home, directory) = directory();
        directory.write_new("disk.0", LAYER_MAGIC).unwrap();
        let mut lineage = Lineage::new(contents(), Origin::Boot, None, files(&["disk.0"]));
        lineage.write(&directory).unwrap();
        for (content, disk) in
            [(&b""[..], &["disk.0"][..]), (&[0; 4096], &["disk.0"]), (LAYER_MAGIC, &["disk.0", "disk.1"])]
        {
            directory.write_new("disk.1", content).unwrap();
            let next = Files { baseline: None, ..files(&["disk.0", "disk.1"]) };
            lineage.announce(&directory, next).unwrap();
            lineage = Lineage::read(&directory).unwrap();
            assert_eq!(lineage.files.disk, disk);
            assert_eq!(directory.has("disk.1"), disk.len() == 2, "an unused layer stays");
            assert_eq!(Lineage::read(&directory).unwrap(), lineage);
        }
        assert_eq!(lineage.files.baseline, None);
    }

    #[test]
    fn only_seals_of_its_own_files_are_taken_over() {
        let seal = Seal { modified_ns: 1, blake3: String::new() };
        let seals = ["disk.0", "memory.0"].map(|name| (name.to_owned(), seal.clone()));
        // A fork has its parent's layers, and its memory only where snapshots go on from that.
        let origin = Origin::Fork { of: SandboxId::try_from("sandbox00001".to_owned()).unwrap() };
        let lineage = Lineage::new(contents(), origin, None, files(&["disk.0", "disk.1"]));
        let lineage = lineage.with_seals(seals.into_iter().collect());
        assert_eq!(lineage.seals.files().collect::<Vec<_>>(), ["disk.0"]);
    }

    #[test]
    fn merged_layers_take_the_place_of_others_once_they_are_a_layer() {
        let (_home, directory) = directory();
        for name in ["disk.0", "disk.1", "disk.2"] {
            directory.write_new(name, LAYER_MAGIC).unwrap();
        }
        // Merged, and nobody said so yet: it goes with the next change.
        directory.write_new("disk.3", &[0; 4096]).unwrap();
        let mut lineage = Lineage::new(contents(), Origin::Boot, None, files(&["disk.0", "disk.1", "disk.2"]));
        lineage.complete(&directory, lineage.files.clone()).unwrap();
        assert!(!directory.has("disk.3"));
        // Announced, and the VMM not asked, or asked, before whoever did was killed.
        for (content, disk) in
            [(&[0; 4096][..], &["disk.0", "disk.1", "disk.2"][..]), (LAYER_MAGIC, &["disk.3", "disk.2"])]
        {
            directory.write_new("disk.3", content).unwrap();
            lineage.announce(&directory, files(&["disk.3", "disk.2"])).unwrap();
            lineage = Lineage::read(&directory).unwrap();
            assert_eq!(lineage.files.disk, disk);
            for name in ["disk.0", "disk.1", "disk.2", "disk.3"] {
                assert_eq!(directory.has(name), disk.contains(&name), "{name}");
            }
        }
    }

    #[test]
    fn a_change_that_adds_several_files_needs_all_of_them() {
        let (_home, directory) = directory();
        for (name, content) in
            [("disk.0", &LAYER_MAGIC[..]), ("disk.1", LAYER_MAGIC), ("disk.2", b""), ("disk.3", LAYER_MAGIC)]
        {
            directory.write_new(name, content).unwrap();
        }
        let mut lineage = Lineage::new(contents(), Origin::Boot, None, files(&["disk.0"]));
        lineage.announce(&directory, files(&["disk.1", "disk.2"])).unwrap();
        assert_eq!(Lineage::read(&directory).unwrap().files.disk, ["disk.0"]);
        directory.write_new("disk.1", LAYER_MAGIC).unwrap();
        directory.write_new("disk.2", LAYER_MAGIC).unwrap();
        lineage.announce(&directory, files(&["disk.1", "disk.2"])).unwrap();
        assert_eq!(Lineage::read(&directory).unwrap().files.disk, ["disk.1", "disk.2"]);
    }

    #[test]
    fn only_what_is_named_nowhere_is_taken_away() {
        let (_home, directory) = directory();
        for name in ["disk.0", "disk.1", "disk.x", "memory.0", "memory.1", "state.0", "state.4", "template"] {
            directory.write_new(name, b"").unwrap();
        }
        let origin = Origin::Snapshot {
            id: SandboxId::try_from("abcdefgh".to_owned()).unwrap(),
            name: None,
            state: "state.0".into(),
            memory: vec!["memory.0".into()],
            disk: vec!["disk.0".into()],
        };
        let mut lineage = Lineage::new(contents(), origin, None, files(&["disk.0"]));
        lineage.complete(&directory, files(&["disk.0"])).unwrap();
        let mut names = directory.names().unwrap();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        assert_eq!(names, ["disk.0", "disk.x", "lineage.json", "memory.0", "state.0", "template"]);
        assert_eq!(free_name(&directory, Kind::Disk).unwrap(), "disk.1");
        assert_eq!(free_name(&directory, Kind::State).unwrap(), "state.1");
    }

    #[tokio::test]
    async fn changes_wait_for_each_other() {
        let (_home, directory) = directory();
        let first = ChangeLock::take(&directory).await.unwrap();
        let second = ChangeLock::take(&directory);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err());
        drop(first);
        second.await.unwrap();
    }
}
