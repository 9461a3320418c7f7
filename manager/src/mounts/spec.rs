//! What a sandbox has mounted beside its root, and the checks that need nothing of the host.
//!
//! The record of a sandbox and the manifest of a snapshot contain these values too, so their form in
//! JSON may only grow.

use super::path::{MountPath, MountPathError};
use crate::volumes::name::VolumeName;
use sandboxvm_images::file_version::FileVersion;
use sandboxvm_protocol::{
    agent::{
        mounts::{MAX_MOUNTS, MAX_VOLUMES},
        share::ShareNumber,
    },
    ids::SandboxName,
};
use sandboxvm_share::Limits;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Minimum and maximum size of a file system in memory in bytes.
const TMPFS_SIZE: std::ops::RangeInclusive<u64> = 4096..=1 << 40;
/// Permission bits, and setuid, setgid and sticky.
const MAX_MODE: u32 = 0o7777;

/// Why a sandbox cannot have these mounts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountsError {
    /// Nothing can be mounted at a path.
    #[error(transparent)]
    Path(#[from] MountPathError),
    /// Two mounts have the same path.
    #[error("cannot mount two things at {0}")]
    Twice(MountPath),
    /// The workspace has the path of a mount.
    #[error("cannot mount anything at {0}: the workspace is there")]
    AtWorkspace(MountPath),
    /// There are too many mounts.
    #[error("invalid number of mounts {0}: a sandbox has at most {MAX_MOUNTS}")]
    TooMany(usize),
    /// There are too many volumes.
    #[error("invalid number of volumes {0}: a sandbox has at most {MAX_VOLUMES}")]
    TooManyVolumes(usize),
    /// One volume is mounted twice.
    #[error("cannot mount volume {0} twice in one sandbox")]
    VolumeTwice(VolumeName),
    /// The size of a file system in memory is out of range.
    #[error("invalid size of a file system in memory of {0} bytes: must be between 4096 bytes and 1 TiB")]
    Size(u64),
    /// The mode of a file system in memory is out of range.
    #[error("invalid mode {0:o} of a file system in memory: must be between 0 and 7777")]
    Mode(u32),
    /// The path of a directory of the host is not absolute, or not UTF-8.
    #[error("invalid directory of the host {0:?}: expected an absolute path in UTF-8")]
    HostDirectory(PathBuf),
    /// There are too many directories of the host.
    #[error("invalid number of directories of the host {0}: a sandbox has at most {max}", max = ShareNumber::COUNT)]
    TooManyShares(usize),
    /// The certificate that secrets and header rules need is a file of the root.
    #[error("cannot make the root read-only: secrets and header rules of the network need a certificate in it")]
    ReadOnlyWithSecrets,
    /// A machine that is restored has the mounts of its snapshot.
    #[error(
        "cannot give the sandbox mounts or a read-only root: it starts from snapshot {0}, and has those of the snapshot"
    )]
    OfSnapshot(SandboxName),
    /// A snapshot does not choose what of the host a sandbox can reach.
    #[error(
        "snapshot {snapshot} has a live share at {at}, and no directory of the host was given for it; it was {path:?}"
    )]
    NoHostDirectory {
        /// The snapshot.
        snapshot: SandboxName,
        /// Where the share is in the guest.
        at: MountPath,
        /// What was shared when the snapshot was taken.
        path: PathBuf,
    },
    /// The guest's kernel refuses to write it.
    #[error("cannot make the share at {at} writable: it is read-only in snapshot {snapshot}")]
    ReadOnlyInSnapshot {
        /// The snapshot.
        snapshot: SandboxName,
        /// Where the share is in the guest.
        at: MountPath,
    },
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MountSource {
    /// A directory of the host, which sandbox and host share.
    HostDirectory {
        /// Absolute path of the directory, or of a file.
        path: PathBuf,
        /// The sandbox cannot write it.
        read_only: bool,
        /// User ID, in the guest, of files that belong to the user who serves the directory.
        #[serde(default)]
        uid: u32,
        /// Group ID of these files in the guest.
        #[serde(default)]
        gid: u32,
        /// The sandbox is a fork, and has a copy of the directory instead, in its own directory.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        copied: bool,
    },
    /// A volume of the server, which several sandboxes write.
    SharedVolume {
        /// Absolute path of its directory.
        path: PathBuf,
        /// Maximum size of its files in bytes.
        bytes: u64,
        /// Maximum number of its files, directories and links.
        names: u64,
    },
    /// A named volume.
    Volume {
        /// Its name.
        name: VolumeName,
        /// The sandbox cannot write it.
        read_only: bool,
        /// The file that the memory of a snapshot has parts of. `None` if the machine did not start from
        /// a snapshot in which the volume was mounted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<FileVersion>,
    },
    /// A file system in memory.
    Tmpfs(Tmpfs),
}

/// A file system in memory. Its files are not executable, and neither setuid bits nor devices have an
/// effect in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Maximum size of its files in bytes. Half of the guest's memory if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Mode of its root. 1777 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Programs in it can be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exec: bool,
}

/// One mount of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Where it is in the guest. The directory is created if it is missing.
    pub at: MountPath,
    /// What is mounted.
    #[serde(flatten)]
    pub source: MountSource,
}

/// All mounts of a sandbox, in an order in which each comes after those that it lies in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<MountSpec>", into = "Vec<MountSpec>")]
pub struct Mounts(Vec<MountSpec>);

impl TryFrom<Vec<MountSpec>> for Mounts {
    type Error = MountsError;

    fn try_from(mounts: Vec<MountSpec>) -> Result<Self, MountsError> {
        Self::new(mounts)
    }
}

impl From<Mounts> for Vec<MountSpec> {
    fn from(mounts: Mounts) -> Self {
        mounts.0
    }
}

impl Mounts {
    /// Checks and orders mounts.
    ///
    /// # Errors
    /// Every [`MountsError`], except those about other parts of a sandbox.
    pub fn new(mut mounts: Vec<MountSpec>) -> Result<Self, MountsError> {
        if mounts.len() > MAX_MOUNTS {
            return Err(MountsError::TooMany(mounts.len()));
        }
        mounts.iter().try_for_each(MountSpec::check)?;
        mounts.sort_by(|a, b| a.at.parts().cmp(b.at.parts()));
        if let Some(twice) = mounts.windows(2).find(|pair| pair[0].at == pair[1].at) {
            return Err(MountsError::Twice(twice[0].at.clone()));
        }
        let mounts = Self(mounts);
        let mut names: Vec<&VolumeName> = mounts.volumes().map(|volume| volume.name).collect();
        let shares = mounts.shares().count();
        if shares > usize::from(ShareNumber::COUNT) {
            return Err(MountsError::TooManyShares(shares));
        }
        if names.len() > MAX_VOLUMES {
            return Err(MountsError::TooManyVolumes(names.len()));
        }
        names.sort();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(MountsError::VolumeTwice(twice[0].clone())),
            None => Ok(mounts),
        }
    }

    /// Returns the mounts in order.
    pub fn iter(&self) -> impl Iterator<Item = &MountSpec> {
        self.0.iter()
    }

    /// Returns true if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if there are volumes of the server, and nothing else.
    pub(crate) fn are_of_server(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|mount| matches!(mount.source, MountSource::SharedVolume { .. }))
    }

    /// Returns true if there is a volume of the server.
    pub(crate) fn has_shared_volume(&self) -> bool {
        self.0.iter().any(|mount| matches!(mount.source, MountSource::SharedVolume { .. }))
    }

    /// Returns the volumes in the order of their slots.
    pub fn volumes(&self) -> impl Iterator<Item = MountedVolume<'_>> {
        self.0.iter().filter_map(|mount| match &mount.source {
            MountSource::Volume { name, read_only, version } => {
                Some(MountedVolume { name, read_only: *read_only, version: version.as_ref() })
            }
            MountSource::HostDirectory { .. } | MountSource::SharedVolume { .. } | MountSource::Tmpfs(_) => None,
        })
    }

    /// Returns the same mounts with the versions of their volumes.
    pub(crate) fn try_with_versions<E>(
        mut self,
        version_of: impl Fn(&VolumeName) -> Result<FileVersion, E>,
    ) -> Result<Self, E> {
        for mount in &mut self.0 {
            if let MountSource::Volume { name, version, .. } = &mut mount.source {
                *version = Some(version_of(name)?);
            }
        }
        Ok(self)
    }

    /// Returns the same mounts without the versions of their volumes.
    pub(crate) fn without_versions(mut self) -> Self {
        for mount in &mut self.0 {
            if let MountSource::Volume { version, .. } = &mut mount.source {
                *version = None;
            }
        }
        self
    }

    /// Returns the mounts of a snapshot with the directories of the host of `given`, which has one for each of
    /// the snapshot's shares, and nothing else. Owners stay: the guest's kernel knows them.
    pub(crate) fn with_shares_of(mut self, given: &Self, snapshot: &SandboxName) -> Result<Self, MountsError> {
        let mut used = 0;
        for MountSpec { at, source } in &mut self.0 {
            let MountSource::HostDirectory { path, read_only, copied, .. } = source else { continue };
            let Some(share) = given.shares().find(|share| share.at == at) else {
                let (snapshot, at, path) = (snapshot.clone(), at.clone(), path.clone());
                return Err(MountsError::NoHostDirectory { snapshot, at, path });
            };
            if *read_only && !share.read_only {
                return Err(MountsError::ReadOnlyInSnapshot { snapshot: snapshot.clone(), at: at.clone() });
            }
            (*path, *read_only, *copied) = (share.path.to_owned(), share.read_only, false);
            used += 1;
        }
        if used == given.0.len() { Ok(self) } else { Err(MountsError::OfSnapshot(snapshot.clone())) }
    }

    /// Returns true if a machine with the one has the same disks and mount points as a machine with the other.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        let form = |mounts: &Self| {
            let mut mounts = mounts.clone().without_versions();
            for mount in &mut mounts.0 {
                if let MountSource::HostDirectory { path, read_only, copied, .. } = &mut mount.source {
                    (*path, *read_only, *copied) = (PathBuf::new(), false, false);
                }
            }
            mounts
        };
        form(self) == form(other)
    }

    /// Returns the same mounts, of whose directories of the host none can be written.
    pub(crate) fn with_read_only_shares(mut self) -> Self {
        for mount in &mut self.0 {
            if let MountSource::HostDirectory { read_only, .. } = &mut mount.source {
                *read_only = true;
            }
        }
        self
    }

    /// Returns the same mounts, with copies in place of the directories of the host that can be written.
    pub(crate) fn with_copied_shares(mut self) -> Self {
        for mount in &mut self.0 {
            if let MountSource::HostDirectory { read_only: false, copied, .. } = &mut mount.source {
                *copied = true;
            }
        }
        self
    }

    /// Returns a share of which the sandbox has a copy, if it has one.
    pub(crate) fn copied_share(&self) -> Option<Share<'_>> {
        self.shares().find(|share| share.copied)
    }

    /// Returns a directory of the host that the sandbox can write, if it has one.
    pub(crate) fn writable_share(&self) -> Option<Share<'_>> {
        self.shares().find(|share| !share.read_only)
    }

    /// Returns a volume that the sandbox can write, if it has one.
    pub(crate) fn writable_volume(&self) -> Option<&VolumeName> {
        self.volumes().find(|volume| !volume.read_only).map(|volume| volume.name)
    }

    /// Rejects the mounts if one of them is at the path of the workspace.
    pub(crate) fn check_beside_workspace(&self, workspace: &str) -> Result<(), MountsError> {
        match self.0.iter().find(|mount| mount.at.as_str() == workspace) {
            Some(mount) => Err(MountsError::AtWorkspace(mount.at.clone())),
            None => Ok(()),
        }
    }

    /// Returns the directories of the host and the volumes of the server, with their numbers.
    pub fn shares(&self) -> impl Iterator<Item = Share<'_>> {
        let shares = self.0.iter().filter_map(|mount| match &mount.source {
            MountSource::HostDirectory { path, read_only, uid, gid, copied } => {
                Some((&mount.at, path, *read_only, (*uid, *gid), None, *copied))
            }
            MountSource::SharedVolume { path, bytes, names } => {
                Some((&mount.at, path, false, (0, 0), Some(Limits { bytes: *bytes, names: *names }), false))
            }
            MountSource::Volume { .. } | MountSource::Tmpfs(_) => None,
        });
        ShareNumber::all().zip(shares).map(|(number, (at, path, read_only, owner, limits, copied))| Share {
            number,
            at,
            path,
            read_only,
            owner,
            limits,
            copied,
        })
    }

    /// Returns true if there is a directory of the host, or a volume of the server.
    #[must_use]
    pub fn has_shares(&self) -> bool {
        self.shares().next().is_some()
    }

    /// Makes files of directories of the host belong to this user and group in the guest.
    #[must_use]
    pub fn with_owner(mut self, owner: (u32, u32)) -> Self {
        for mount in &mut self.0 {
            if let MountSource::HostDirectory { uid, gid, .. } = &mut mount.source {
                (*uid, *gid) = owner;
            }
        }
        self
    }
}

/// A directory or file of the host, which host and sandbox share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share<'a> {
    /// Its number in the sandbox.
    pub number: ShareNumber,
    /// Where it is in the guest.
    pub at: &'a MountPath,
    /// Its absolute path on the host.
    pub path: &'a Path,
    /// The sandbox cannot write it.
    pub read_only: bool,
    /// User and group ID, in the guest, of files that belong to the user who serves the directory.
    pub owner: (u32, u32),
    /// What it may contain, if it is a volume of the server.
    pub limits: Option<Limits>,
    /// The sandbox has a copy of the directory in its own directory.
    pub copied: bool,
}

/// A volume of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountedVolume<'a> {
    /// Its name.
    pub name: &'a VolumeName,
    /// The sandbox cannot write it.
    pub read_only: bool,
    /// The file that the memory of the machine has parts of, if it started from such a snapshot.
    pub version: Option<&'a FileVersion>,
}

impl MountSpec {
    fn check(&self) -> Result<(), MountsError> {
        match &self.source {
            MountSource::HostDirectory { path, .. } | MountSource::SharedVolume { path, .. }
                if !path.is_absolute() || path.to_str().is_none() =>
            {
                Err(MountsError::HostDirectory(path.clone()))
            }
            MountSource::Tmpfs(Tmpfs { size: Some(size), .. }) if !TMPFS_SIZE.contains(size) => {
                Err(MountsError::Size(*size))
            }
            MountSource::Tmpfs(Tmpfs { mode: Some(mode), .. }) if *mode > MAX_MODE => Err(MountsError::Mode(*mode)),
            MountSource::HostDirectory { .. }
            | MountSource::SharedVolume { .. }
            | MountSource::Volume { .. }
            | MountSource::Tmpfs(_) => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn volume(name: &str, at: &str, read_only: bool) -> MountSpec {
        let name = VolumeName::try_from(name.to_owned()).unwrap();
        MountSpec {
            at: MountPath::try_from(at.to_owned()).unwrap(),
            source: MountSource::Volume { name, read_only, version: None },
        }
    }

    pub(crate) fn tmpfs(at: &str, tmpfs: Tmpfs) -> MountSpec {
        MountSpec { at: MountPath::try_from(at.to_owned()).unwrap(), source: MountSource::Tmpfs(tmpfs) }
    }

    #[test]
    fn mounts_come_after_those_that_they_lie_in() {
        let mounts = ["/a/b/c", "/a-b", "/a", "/a/b"].map(|at| tmpfs(at, Tmpfs::default()));
        let mounts = Mounts::new(mounts.to_vec()).unwrap();
        let paths: Vec<&str> = mounts.iter().map(|mount| mount.at.as_str()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c", "/a-b"]);
    }

    #[test]
    fn mounts_that_no_sandbox_can_have_are_refused() {
        let refused = |mounts: Vec<MountSpec>| Mounts::new(mounts).unwrap_err().to_string();
        let twice = vec![tmpfs("/a", Tmpfs::default()), volume("x", "/a/", false)];
        assert_eq!(refused(twice), "cannot mount two things at /a");
        let twice = vec![volume("x", "/a", true), volume("x", "/b", true)];
        assert_eq!(refused(twice), "cannot mount volume x twice in one sandbox");
        let many = (0..=MAX_VOLUMES).map(|n| volume(&format!("v{n}"), &format!("/{n}"), false)).collect();
        assert!(refused(many).contains("at most 8"));
        let many = (0..=MAX_MOUNTS).map(|n| tmpfs(&format!("/{n}"), Tmpfs::default())).collect();
        assert!(refused(many).contains("invalid number of mounts"));
        assert!(refused(vec![tmpfs("/a", Tmpfs { size: Some(1), ..Tmpfs::default() })]).contains("of 1 bytes"));
        assert!(refused(vec![tmpfs("/a", Tmpfs { mode: Some(0o10000), ..Tmpfs::default() })]).contains("mode 10000"));
        let directory =
            MountSource::HostDirectory { path: "data".into(), read_only: true, uid: 0, gid: 0, copied: false };
        let at = MountPath::try_from("/data".to_owned()).unwrap();
        assert!(refused(vec![MountSpec { at, source: directory }]).contains("absolute path"));
    }

    #[test]
    fn shares_of_a_snapshot_are_chosen_again_and_never_become_writable() {
        let share = |path: &str, at: &str, read_only, uid| MountSpec {
            at: MountPath::try_from(at.to_owned()).unwrap(),
            source: MountSource::HostDirectory { path: path.into(), read_only, uid, gid: uid, copied: false },
        };
        let mounts = |mounts: &[MountSpec]| Mounts::new(mounts.to_vec()).unwrap();
        let tmp = tmpfs("/tmp", Tmpfs::default());
        let of_snapshot = mounts(&[share("/old", "/data", false, 7), share("/fixed", "/ro", true, 7), tmp.clone()]);
        let name = SandboxName::try_from("kept".to_owned()).unwrap();
        let with = |given: &[MountSpec]| of_snapshot.clone().with_shares_of(&mounts(given), &name);
        let (new, fixed) = (share("/new", "/data", true, 0), share("/other", "/ro", true, 0));
        let made = with(&[new.clone(), fixed.clone()]).unwrap();
        assert_eq!(made, mounts(&[share("/new", "/data", true, 7), share("/other", "/ro", true, 7), tmp.clone()]));
        assert!(made.fits(&of_snapshot) && !made.fits(&mounts(&[new.clone(), fixed.clone()])));
        let refused = |given: &[MountSpec]| with(given).unwrap_err().to_string();
        assert!(refused(&[]).contains("live share at /data") && refused(&[]).contains("it was \"/old\""));
        assert!(refused(std::slice::from_ref(&new)).contains("live share at /ro"));
        assert!(refused(&[new.clone(), share("/other", "/ro", false, 0)]).contains("cannot make the share at /ro"));
        assert!(refused(&[new, fixed, tmp]).contains("has those of the snapshot"));
    }

    #[test]
    fn form_in_json_is_pinned() {
        let mounts = Mounts::new(vec![
            volume("cache", "/root/.cache", false),
            tmpfs("/tmp", Tmpfs { size: Some(1 << 20), mode: Some(0o700), exec: true }),
        ]);
        let mounts = mounts.unwrap();
        let json = r#"[{"at":"/root/.cache","type":"volume","name":"cache","read_only":false},{"at":"/tmp","type":"tmpfs","size":1048576,"mode":448,"exec":true}]"#;
        assert_eq!(serde_json::to_string(&mounts).unwrap(), json);
        assert_eq!(serde_json::from_str::<Mounts>(json).unwrap(), mounts);
        // What is read is checked as what a user asks for.
        let twice = r#"[{"at":"/a","type":"tmpfs"},{"at":"/a/","type":"tmpfs"}]"#;
        assert!(serde_json::from_str::<Mounts>(twice).unwrap_err().to_string().contains("two things at /a"));
    }
}
