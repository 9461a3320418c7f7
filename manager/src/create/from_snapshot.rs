//! What a machine that goes on from a snapshot with a name is made of. Read for [`crate::create::spec`], which lets it run at once,
//! and [`crate::create::armed`], which lets it wait; writes nothing.

use crate::{
    create::{
        error::CreateError,
        machine::{Disks, Restored},
        spec::SandboxSpec,
    },
    home::{
        content::{self, Content},
        host::HostIdentity,
        ids::new_id,
        layout::Home,
    },
    limits::kept::Limits,
    manager::Manager,
    record::{FileRecord, SandboxRecord},
    snapshot::{
        error::SnapshotError,
        lineage::Contents,
        store::{ReadOnlyDisks, StoredSnapshot},
    },
};
use sandboxvm_images::{
    bundle::{Bundle, Part},
    file_version::FileVersion,
};
use sandboxvm_protocol::ids::SandboxName;
use std::{fs::File, time::SystemTime};

/// See the module.
#[derive(Debug)]
pub(crate) struct NamedBasis {
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
        Ok(Self { snapshot, host, contents, disks })
    }

    /// vCPUs, memory and disk are the snapshot's; so are variables that `spec` has not.
    pub(crate) fn record(&self, spec: &SandboxSpec) -> Result<SandboxRecord, CreateError> {
        let manifest = &self.snapshot.manifest;
        // In memory already: the file need not exist any more.
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
            env: merged(&manifest.env, &spec.env),
            ephemeral: spec.ephemeral,
            limits: Limits::new(spec.limits, manifest.memory_bytes),
        })
    }

    /// The kernel that it was made with.
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

/// `over` on top of `under`: the last of each variable counts.
pub(crate) fn merged(under: &[String], over: &[String]) -> Vec<String> {
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let hidden: Vec<String> = over.iter().map(|entry| key(entry)).collect();
    under.iter().filter(|entry| !hidden.contains(&key(entry))).chain(over).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_given_at_create_hide_those_of_the_snapshot() {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let env = merged(&texts(&["A=1", "B=2"]), &texts(&["B=3", "C=4"]));
        assert_eq!(env, ["A=1", "B=3", "C=4"]);
    }
}
