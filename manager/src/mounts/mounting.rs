//! Tells the agent to mount everything that a sandbox has beside its root, before anything else uses the
//! guest.
//!
//! The file `mounts.due` in the directory of a sandbox means that its machine may not have mounted it yet.
//! Repeating the request is harmless.

use super::{
    share_copy,
    share_root::ShareRootError,
    spec::{MountSource, Mounts, Share, Tmpfs},
};
use crate::{
    guest::{
        error::ExecError,
        files::{FileError, Files},
    },
    home::directory::{DirectoryError, SandboxDirectory},
    record::SandboxRecord,
    sandbox::Sandbox,
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::{
    agent::{
        files::{FilePath, FilePathError},
        mounts::{Mount, MountTable, MountedSource},
        share::ShareMount,
    },
    machine::{DiskNumber, MachineError},
};

const DUE: &str = "mounts.due";
/// Disks of every machine: the agent's, the image and the writable one.
const DISKS_BEFORE: usize = 3;
/// Mode of a file system in memory for which none is given.
const TMPFS_MODE: u32 = 0o1777;

/// Why the request cannot be made.
#[derive(Debug, thiserror::Error)]
enum TableError {
    /// A path is too long, or contains a NUL.
    #[error(transparent)]
    Path(#[from] FilePathError),
    /// A directory of the host cannot be shared any more.
    #[error(transparent)]
    Share(#[from] ShareRootError),
    /// There are too many disks.
    #[error(transparent)]
    Disk(#[from] MachineError),
}

/// Returns true if a sandbox has anything beside its root, or a root that is read-only.
fn has_any(record: &SandboxRecord) -> bool {
    !record.mounts.is_empty() || record.read_only_root
}

/// Records that the machine of `directory` has to mount what its sandbox has.
pub(crate) fn make_due(directory: &SandboxDirectory, record: &SandboxRecord) -> Result<(), DirectoryError> {
    if !has_any(record) || directory.has(DUE) { Ok(()) } else { directory.create_file(DUE).map(drop) }
}

/// Records that a copy of the machine of `of` has to mount it, if that machine has not.
pub(crate) fn inherit_due(
    directory: &SandboxDirectory,
    of: &SandboxDirectory,
    record: &SandboxRecord,
) -> Result<(), DirectoryError> {
    if of.has(DUE) { make_due(directory, record) } else { Ok(()) }
}

impl Sandbox {
    /// Mounts the workspace and everything else if that is due. The root becomes read-only last.
    pub(crate) fn mount_all(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        Box::pin(async move {
            self.mount_workspace().await?;
            let SandboxRecord { mounts, read_only_root, .. } = &self.record;
            if !has_any(&self.record) || !self.directory.has(DUE) {
                return Ok(());
            }
            let failed = |error: FileError| match error {
                FileError::Sandbox(error) => error,
                error => ExecError::Mounts(error.to_string()),
            };
            let slots = self.record.workspace.as_ref().map_or(0, |workspace| workspace.slots.len());
            let steps = self.steps(mounts, *read_only_root, DISKS_BEFORE + slots);
            for step in steps.map_err(|error| ExecError::Mounts(error.to_string()))? {
                let files = Files::of(self);
                match step {
                    Step::Table(table) => files.mount(table).await.map_err(failed)?,
                    Step::Share(share) => files.mount_share(share).await.map_err(failed)?,
                }
            }
            Ok(self.directory.unlink(DUE)?)
        })
    }
}

/// One request.
#[derive(Debug)]
enum Step {
    Table(MountTable),
    Share(ShareMount),
}

impl Sandbox {
    /// Returns the requests, in an order in which each mount comes after those that it lies in. The first
    /// volume is disk `first`.
    fn steps(&self, mounts: &Mounts, read_only_root: bool, first: usize) -> Result<Vec<Step>, TableError> {
        let is_directory =
            |share: &Share<'_>| Ok(share_copy::open_share(&self.home, &self.directory, share)?.is_directory);
        steps(mounts, read_only_root, first, is_directory)
    }
}

fn steps(
    mounts: &Mounts,
    read_only_root: bool,
    first: usize,
    is_directory: impl Fn(&Share<'_>) -> Result<bool, TableError>,
) -> Result<Vec<Step>, TableError> {
    let mut disks = (first..).map(|number| u8::try_from(number).unwrap_or(u8::MAX));
    let mut shares = mounts.shares();
    let mut steps = Vec::new();
    let mut entries = Vec::new();
    for mount in mounts.iter() {
        let source = match &mount.source {
            MountSource::Volume { read_only, .. } => {
                let disk = DiskNumber::try_from(disks.next().unwrap_or(u8::MAX))?;
                MountedSource::Volume { disk, read_only: *read_only }
            }
            MountSource::Tmpfs(Tmpfs { size, mode, exec }) => {
                MountedSource::Tmpfs { size: *size, mode: mode.unwrap_or(TMPFS_MODE), exec: *exec }
            }
            MountSource::HostDirectory { .. } | MountSource::SharedVolume { .. } => {
                if !entries.is_empty() {
                    let mounts = std::mem::take(&mut entries);
                    steps.push(Step::Table(MountTable { mounts, read_only_root: false }));
                }
                let Some(share) = shares.next() else { continue };
                let at = FilePath::try_from(mount.at.as_str())?;
                let (number, is_directory) = (share.number, is_directory(&share)?);
                steps.push(Step::Share(ShareMount { number, at, is_directory, read_only: share.read_only }));
                continue;
            }
        };
        entries.push(Mount { at: FilePath::try_from(mount.at.as_str())?, source });
    }
    if !entries.is_empty() || read_only_root {
        steps.push(Step::Table(MountTable { mounts: entries, read_only_root }));
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::{
        MountPath, MountSpec,
        spec::tests::{tmpfs, volume},
    };

    #[test]
    fn volumes_are_the_disks_behind_the_workspace_in_the_order_of_their_paths() {
        let mounts = vec![
            volume("b", "/b", true),
            tmpfs("/aa", Tmpfs { size: Some(4096), ..Tmpfs::default() }),
            volume("a", "/a", false),
        ];
        let mut steps = steps(&Mounts::new(mounts).unwrap(), true, DISKS_BEFORE + 2, |_| unreachable!()).unwrap();
        let Some(Step::Table(table)) = steps.pop() else { panic!("{steps:?}") };
        assert!(steps.is_empty());
        let seen: Vec<_> = table.mounts.iter().map(|mount| (mount.at.as_bytes(), mount.source.clone())).collect();
        let disk = |number: u8| DiskNumber::try_from(number).unwrap();
        assert_eq!(
            seen,
            [
                (&b"/a"[..], MountedSource::Volume { disk: disk(5), read_only: false }),
                (b"/aa", MountedSource::Tmpfs { size: Some(4096), mode: 0o1777, exec: false }),
                (b"/b", MountedSource::Volume { disk: disk(6), read_only: true }),
            ]
        );
        assert!(table.read_only_root);
    }

    #[test]
    fn shares_are_mounted_after_what_they_lie_in_and_before_what_lies_in_them() {
        let share = |path: &str, at: &str, read_only| MountSpec {
            at: MountPath::try_from(at.to_owned()).unwrap(),
            source: MountSource::HostDirectory { path: path.into(), read_only, uid: 0, gid: 0, copied: false },
        };
        let mounts = vec![
            share("/host/app", "/app", false),
            share("/host/file", "/etc/file", true),
            volume("modules", "/app/node_modules", false),
            tmpfs("/a", Tmpfs::default()),
        ];
        let steps = steps(&Mounts::new(mounts).unwrap(), true, 3, |share| Ok(!share.path.ends_with("file"))).unwrap();
        let seen: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::Table(table) => {
                    let at: Vec<_> = table.mounts.iter().map(|mount| mount.at.as_bytes()).collect();
                    (at, None, table.read_only_root)
                }
                Step::Share(share) => {
                    let about = (share.number.port(), share.is_directory);
                    (vec![share.at.as_bytes()], Some(about), share.read_only)
                }
            })
            .collect();
        assert_eq!(
            seen,
            [
                (vec![&b"/a"[..]], None, false),
                (vec![b"/app"], Some((512, true)), false),
                (vec![b"/app/node_modules"], None, false),
                (vec![b"/etc/file"], Some((513, false)), true),
                (vec![], None, true),
            ]
        );
    }
}
