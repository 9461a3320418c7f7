//! The files and the record of a machine that is restored from a named snapshot.
//! [`crate::create::start`] reads them to run the machine immediately, and [`crate::create::armed`]
//! to let it wait. This module may not write anything.

use crate::{
    create::{
        error::CreateError,
        spec::{SandboxSpec, check_env},
        {launch::Disks, machine::Restored},
    },
    home::{
        content::{self, Content},
        host::HostIdentity,
        ids::new_id,
        layout::Home,
    },
    limits::kept::Limits,
    manager::Manager,
    mounts::MountsError,
    record::{FileRecord, SandboxRecord},
    snapshot::{
        error::SnapshotError,
        lineage::Contents,
        store::{ReadOnlyDisks, StoredSnapshot},
    },
    workspace::WorkspaceError,
};
use sandboxvm_images::{
    bundle::{Bundle, Part},
    file_version::FileVersion,
};
use sandboxvm_protocol::ids::SandboxName;
use std::{fs::File, time::SystemTime};

/// A named snapshot, with everything that a new machine needs to be restored from it.
#[derive(Debug)]
pub(crate) struct NamedBasis {
    name: SandboxName,
    pub(crate) snapshot: StoredSnapshot,
    host: HostIdentity,
    contents: Contents,
    disks: ReadOnlyDisks,
}

impl NamedBasis {
    pub(crate) fn read(manager: &Manager, bundle: &Bundle, name: &SandboxName) -> Result<Self, CreateError> {
        let snapshot = StoredSnapshot::named(&manager.home, name)?;
        let host = HostIdentity::read()?;
        let disks = snapshot.read_only_disks(&manager.home, bundle)?;
        let vmm = bundle.open_part(Part::Vmm)?;
        let vmm = content::of(&manager.home, &vmm, bundle.path(Part::Vmm))?;
        let contents = Contents { vmm, ..snapshot.manifest.contents.clone() };
        Ok(Self { name: name.clone(), snapshot, host, contents, disks })
    }

    /// Returns the record of a new sandbox. vCPUs, memory, disk, network card, workspace and the variables that
    /// `spec` does not set are those of the snapshot.
    pub(crate) fn record(&self, spec: &SandboxSpec) -> Result<SandboxRecord, CreateError> {
        let manifest = &self.snapshot.manifest;
        if spec.network.is_some() && !manifest.network_card {
            return Err(CreateError::NoCard(self.name.clone()));
        }
        self.new_record(spec, manifest.network_card)
    }

    /// Returns the record of a new sandbox that boots from the disk of the snapshot. It has a network
    /// card if it has a network.
    pub(crate) fn record_of_boot(&self, spec: &SandboxSpec) -> Result<SandboxRecord, CreateError> {
        self.new_record(spec, spec.network.is_some())
    }

    fn new_record(&self, spec: &SandboxSpec, network_card: bool) -> Result<SandboxRecord, CreateError> {
        if spec.workspace.is_some() {
            return Err(WorkspaceError::OfSnapshot(self.name.clone()).into());
        }
        if spec.read_only_root {
            return Err(MountsError::OfSnapshot(self.name.clone()).into());
        }
        let manifest = &self.snapshot.manifest;
        let is_bare = manifest.mounts.is_empty() && !manifest.read_only_root;
        let mounts = if is_bare && spec.mounts.are_of_server() {
            // A machine that has nothing mounted can mount volumes of the server, for which it needs no device.
            if let Some(workspace) = &manifest.workspace {
                spec.mounts.check_beside_workspace(&workspace.at)?;
            }
            spec.mounts.clone()
        } else {
            manifest.mounts.clone().with_shares_of(&spec.mounts, &self.name)?
        };
        // The kernel is part of the restored memory, so its file need not exist any more.
        let identity = FileVersion { device: 0, inode: 0, size: 0, modified_ns: 0 };
        Ok(SandboxRecord {
            format: SandboxRecord::FORMAT,
            id: new_id().map_err(CreateError::Entropy)?,
            name: spec.name.clone(),
            created_at: SystemTime::now(),
            vcpus: manifest.vcpus,
            memory_bytes: manifest.memory_bytes,
            disk_bytes: manifest.disk_bytes,
            kernel: FileRecord { path: manifest.contents.kernel.path.clone(), identity },
            image: self.disks.image.1.clone(),
            agent: self.disks.agent.1.clone(),
            env: merged(&manifest.env, &spec.env)?,
            ephemeral: spec.ephemeral,
            limits: Limits::new(spec.limits, manifest.memory_bytes),
            network_card,
            image_defaults: manifest.image_defaults.clone().or_else(|| spec.image_defaults.clone()),
            workspace: manifest.workspace.clone(),
            mounts,
            read_only_root: manifest.read_only_root,
        })
    }

    /// Opens the kernel that the snapshot was made with.
    pub(crate) fn kernel(&self, home: &Home, bundle: &Bundle) -> Result<File, CreateError> {
        let Content { path, sha256 } = &self.contents.kernel;
        let found = content::find(home, &self.contents.kernel, &bundle.kernel);
        found.ok_or_else(|| {
            let (sha256, path) = (sha256.clone(), path.clone());
            SnapshotError::OtherContent { part: Part::Kernel, sha256, path }.into()
        })
    }

    pub(crate) fn restored(&self) -> Restored<'_> {
        let disks = Disks { agent: &self.disks.agent.0, image: &self.disks.image.0 };
        Restored { snapshot: &self.snapshot, host: &self.host, contents: &self.contents, disks }
    }
}

/// Merges environment variables: an entry of `over` replaces the entry of `under` with the same
/// name.
///
/// # Errors
/// Fails if no command could be started with all of them, whether the snapshot, the call or both have too much.
pub(crate) fn merged(under: &[String], over: &[String]) -> Result<Vec<String>, CreateError> {
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let hidden: Vec<String> = over.iter().map(|entry| key(entry)).collect();
    let env: Vec<String> = under.iter().filter(|entry| !hidden.contains(&key(entry))).chain(over).cloned().collect();
    check_env(&env)?;
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_given_at_create_hide_those_of_the_snapshot() {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let env = merged(&texts(&["A=1", "B=2"]), &texts(&["B=3", "C=4"])).unwrap();
        assert_eq!(env, ["A=1", "B=3", "C=4"]);
    }

    #[test]
    fn variables_with_which_no_command_starts_are_refused_wherever_they_come_from() {
        let many = |name: &str| (0..6).map(|n| format!("{name}{n}={}", "x".repeat(100 << 10))).collect::<Vec<_>>();
        let refused = |under: &[String], over: &[String]| merged(under, over).unwrap_err().to_string();
        assert_eq!(merged(&many("A"), &[]).unwrap().len(), 6);
        assert!(refused(&many("A"), &many("B")).contains("all variables together take"));
        // A manifest can come from elsewhere.
        assert!(refused(&["A=\0".into()], &[]).contains('A'));
        assert!(merged(&["A=\0".into()], &["A=1".into()]).is_ok());
    }
}
