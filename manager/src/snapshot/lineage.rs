//! `lineage.json`: the files that the disk and the memory of a sandbox consist of, and what the
//! sandbox started from. Snapshot, fork and reset change it, and may do so only while they hold the
//! sandbox's change lock ([`ChangeLock`]).
//!
//! A change gives the VMM a file for its disk: an empty one for the top, or one in which older
//! layers are merged. It is impossible to write a record and make a VMM use a file in one step. The
//! record therefore names in advance what *may* come to be (`next`), and any later reader can see
//! whether it did: a file is a layer from the moment the VMM writes its header. If the process that
//! makes the change is killed in between, nothing is lost.
//!
//! [`ChangeLock`]: crate::snapshot::change_lock::ChangeLock

use crate::{
    home::{
        content::Content,
        directory::{DirectoryError, SandboxDirectory},
    },
    snapshot::seal::{SealError, Seals},
    vmm::state,
    workspace,
};
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

const LINEAGE: &str = "lineage.json";
/// The raw image below the layers of the disk.
pub(crate) const TEMPLATE: &str = "template";
/// Links to the base image and the agent disk, if the bundle is on the file system of the home: an
/// upgrade replaces the files of the bundle.
pub(crate) const IMAGE: &str = "image";
pub(crate) const AGENT: &str = "agent";
/// Maximum size of the record in bytes. It has a line for each file.
const MAX_LINEAGE: u64 = 1 << 20;
const FORMAT: u32 = 1;
/// First bytes of a layer that a VMM uses (docs/snapshot-format.md).
const LAYER_MAGIC: &[u8; 8] = b"SBVMLAYR";

/// Why the lineage of a sandbox cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The sandbox was created before there were snapshots.
    #[error("the sandbox was created by an older sandboxvm, which kept no record of its disk layers")]
    Missing,
    /// The record is not valid.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// Path of the record.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// A newer sandboxvm wrote the record.
    #[error("{} has unsupported format {found}: this build reads {FORMAT}", .path.display())]
    Format {
        /// Path of the record.
        path: PathBuf,
        /// The format of the record.
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

/// How a sandbox started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    /// Its kernel booted.
    Boot,
    /// It was restored from a snapshot. These are the names of the snapshot's files in the
    /// sandbox's directory.
    Snapshot {
        id: SandboxId,
        /// `None` for a ready snapshot.
        name: Option<SandboxName>,
        state: String,
        memory: Vec<String>,
        disk: Vec<String>,
    },
    /// It was forked from another sandbox while that one was running.
    Fork { of: SandboxId },
}

/// The files of a disk, and of the snapshot that the next one is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Files {
    /// Oldest first. The VMM writes to the last one.
    pub(crate) disk: Vec<String>,
    /// The memory files of the VMM's last snapshot. `None` if a snapshot was started and its end
    /// was not observed: then only the VMM knows, and the next snapshot is written in full.
    pub(crate) baseline: Option<Vec<String>>,
}

/// The record of the files of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    format: u32,
    pub(crate) contents: Contents,
    pub(crate) origin: Origin,
    /// The snapshot that `baseline` belongs to.
    pub(crate) parent: Option<SandboxId>,
    pub(crate) files: Files,
    /// In force as soon as all of its disk files are in use.
    next: Option<Files>,
    /// True if the kernel has booted from the sandbox's own disk since it started: then its VMM
    /// cannot reset it to `origin` in place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) rebooted: bool,
    /// Seals that files have from a snapshot, so that the next snapshot need not read them again.
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

    /// Reads the record and decides the result of a change that was not finished. Requires the
    /// change lock, and that a VMM that lives has answered a request: then it has carried out all
    /// earlier requests.
    pub(super) fn read(directory: &SandboxDirectory) -> Result<Self, LineageError> {
        let mut lineage = Self::peek(directory)?;
        if lineage.next.is_some() {
            lineage.conclude(directory)?;
        }
        Ok(lineage)
    }

    /// Reads the record as it is, without the change lock. Does not decide the result of an
    /// unfinished change.
    pub(crate) fn peek(directory: &SandboxDirectory) -> Result<Self, LineageError> {
        let path = || directory.path().join(LINEAGE);
        let json = match directory.read(LINEAGE, MAX_LINEAGE) {
            Ok(json) => json,
            Err(error) if error.is_not_found() && directory.exists() => return Err(LineageError::Missing),
            Err(error) => return Err(error.into()),
        };
        let lineage: Self =
            serde_json::from_slice(&json).map_err(|source| LineageError::Damaged { path: path(), source })?;
        if lineage.format != FORMAT {
            return Err(LineageError::Format { path: path(), found: lineage.format });
        }
        Ok(lineage)
    }

    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), LineageError> {
        Ok(directory.replace(LINEAGE, &self.json(directory)?)?)
    }

    /// Writes the record of a sandbox that is being created. Does not sync it: if the host loses
    /// power now, the whole sandbox is lost, and a sync takes as long as everything else together.
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

    /// Makes the announced files the current ones if the disk files that they add are in use, and
    /// forgets them otherwise.
    pub(crate) fn conclude(&mut self, directory: &SandboxDirectory) -> Result<(), LineageError> {
        if let Some(next) = self.next.take() {
            // The top is checked first: if it is new, it decides alone.
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

    /// Records that the change was carried out with the result `files`.
    pub(crate) fn complete(&mut self, directory: &SandboxDirectory, files: Files) -> Result<(), LineageError> {
        self.files = files;
        self.next = None;
        self.forget_seals();
        self.write(directory)?;
        self.tidy(directory)
    }

    /// Rejects files of the snapshot that the sandbox started from if they have changed.
    pub(crate) async fn check_origin(&self, directory: &SandboxDirectory) -> Result<(), SealError> {
        let Origin::Snapshot { state, memory, disk, .. } = &self.origin else { return Ok(()) };
        for name in memory.iter().chain(disk).chain([state]) {
            self.seals.check(directory, name, &directory.open_shared(name)?).await?;
        }
        Ok(())
    }

    /// Returns all files that any part of the record names.
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

    /// Forgets the seals of files that are being removed, because their names will be given to
    /// other files.
    fn forget_seals(&mut self) {
        let mut seals = std::mem::take(&mut self.seals);
        let named = self.named();
        seals.retain(|file| named.contains(file));
        self.seals = seals;
    }

    /// Removes files that no part of the record names.
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

/// The content of a numbered file.
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

    /// Returns the name of file `number` of this kind.
    pub(crate) fn name(self, number: usize) -> String {
        format!("{}{number}", self.prefix())
    }
}

/// Links the read-only disks of a machine into its directory, where that is possible without
/// copying.
pub(crate) fn keep_disks(directory: &SandboxDirectory, agent: &File, image: &File) -> Result<(), DirectoryError> {
    for (file, name) in [(agent, AGENT), (image, IMAGE)] {
        directory.unlink(name)?;
        // If this fails, they are found at their old path, as long as they are there.
        let _ = directory.link(file, name);
    }
    Ok(())
}

/// Links everything except layers and memory that a copy of a machine, or a snapshot of it,
/// consists of.
pub(crate) fn share_disks(from: &SandboxDirectory, to: &SandboxDirectory) -> Result<(), DirectoryError> {
    for name in [AGENT, IMAGE].into_iter().filter(|name| from.has(name)) {
        to.link_from(from, name, name)?;
    }
    workspace::files::share(from, to)?;
    to.link_from(from, TEMPLATE, TEMPLATE)
}

/// Returns a name of this kind that no file of `directory` has. Requires the change lock, or a
/// directory that no other process sees.
pub(crate) fn free_name(directory: &SandboxDirectory, kind: Kind) -> Result<String, DirectoryError> {
    let names = directory.names()?;
    let numbers = names.iter().filter_map(|name| name.strip_prefix(kind.prefix())?.parse::<usize>().ok());
    Ok(kind.name(numbers.max().map_or(0, |last| last + 1)))
}

/// Opens files that are never written again, in the given order.
pub(crate) fn open_all(directory: &SandboxDirectory, names: &[String]) -> Result<Vec<File>, DirectoryError> {
    names.iter().map(|name| directory.open_shared(name)).collect()
}

/// Returns true if the VMM uses this file as a layer: it has written a header and, while it lives,
/// has the file open.
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

/// Returns the PID of the sandbox's VMM while it lives.
pub(crate) fn live_vmm(directory: &SandboxDirectory) -> Result<Option<u32>, DirectoryError> {
    let Some(status) = state::status(directory)? else { return Ok(None) };
    Ok(crate::vmm::lock::is_holder(directory, status.pid).then_some(status.pid))
}

fn has_open(pid: u32, file: &File) -> bool {
    let Ok(wanted) = file.metadata() else { return false };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    // Follows the link: the question is which file is behind the descriptor, whatever its name is
    // by now.
    descriptors
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .any(|metadata| (metadata.dev(), metadata.ino()) == (wanted.dev(), wanted.ino()))
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
    fn unfinished_change_is_decided_by_the_header_of_its_layer() {
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
    fn seals_are_kept_only_for_named_files() {
        let seal = Seal { modified_ns: 1, blake3: String::new() };
        let seals = ["disk.0", "memory.0"].map(|name| (name.to_owned(), seal.clone()));
        // A fork has the layers of its parent, and its memory only if its snapshots continue from
        // that.
        let origin = Origin::Fork { of: SandboxId::try_from("sandbox00001".to_owned()).unwrap() };
        let lineage = Lineage::new(contents(), origin, None, files(&["disk.0", "disk.1"]));
        let lineage = lineage.with_seals(seals.into_iter().collect());
        assert_eq!(lineage.seals.files().collect::<Vec<_>>(), ["disk.0"]);
    }

    #[test]
    fn merged_layer_replaces_others_once_it_has_a_header() {
        let (_home, directory) = directory();
        for name in ["disk.0", "disk.1", "disk.2"] {
            directory.write_new(name, LAYER_MAGIC).unwrap();
        }
        // Merged, but not announced: the next change removes it.
        directory.write_new("disk.3", &[0; 4096]).unwrap();
        let mut lineage = Lineage::new(contents(), Origin::Boot, None, files(&["disk.0", "disk.1", "disk.2"]));
        lineage.complete(&directory, lineage.files.clone()).unwrap();
        assert!(!directory.has("disk.3"));
        // Announced, and the process was killed before or after the VMM carried out the request.
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
    fn change_with_several_files_needs_all_of_them() {
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
    fn tidying_removes_only_unnamed_files() {
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
}
