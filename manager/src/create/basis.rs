//! Opens and identifies the files that a new machine is made of: VMM, kernel, image, agent and the
//! template of its disk. May not change any of them.

use crate::{
    create::{error::CreateError, spec::SandboxSpec},
    home::{
        content::{self, Content},
        directory::DirectoryError,
        ids::new_id,
    },
    limits::kept::Limits,
    manager::Manager,
    record::{FileRecord, SandboxRecord},
    snapshot::lineage::Contents,
    workspace::WorkspaceRecord,
};
use sandboxvm_images::{
    bundle::{Bundle, OpenBundle},
    file_version::FileVersion,
    template::{self, DiskSize},
};
use std::{fs::File, io, time::SystemTime};

/// The files that a new machine is made of, open and identified.
#[derive(Debug)]
pub(crate) struct Basis {
    pub(crate) open: OpenBundle,
    pub(crate) contents: Contents,
    pub(crate) template: File,
}

impl Manager {
    /// Opens and identifies the files that a new machine is made of.
    pub(crate) async fn basis(&self, bundle: &Bundle, disk: DiskSize) -> Result<Basis, CreateError> {
        let open = bundle.open()?;
        let template = self.template(disk).await?;
        // Reading an image for the first time takes long: it has some hundred MiB.
        let (home, paths) = (self.home.clone(), bundle.clone());
        let hashed = tokio::task::spawn_blocking(move || {
            let contents = Contents {
                vmm: content::at(&home, &paths.vmm)?,
                kernel: content::of(&home, &open.kernel, &paths.kernel)?,
                image: content::of(&home, &open.image, &paths.image)?,
                agent: content::of(&home, &open.agent, &paths.agent)?,
            };
            Ok::<_, DirectoryError>((open, contents))
        });
        let (open, contents) =
            hashed.await.map_err(|e| DirectoryError::new("read", bundle.image.clone(), io::Error::other(e)))??;
        Ok(Basis { open, contents, template })
    }

    async fn template(&self, size: DiskSize) -> Result<File, CreateError> {
        let directory = self.home.templates();
        if let Some(file) = template::existing(&directory, size)? {
            return Ok(file);
        }
        let made = tokio::task::spawn_blocking(move || template::open(&directory, size)).await;
        Ok(made.map_err(|e| DirectoryError::new("make a template in", self.home.templates(), io::Error::other(e)))??)
    }
}

pub(crate) fn new_record(spec: &SandboxSpec, basis: &Basis) -> Result<SandboxRecord, CreateError> {
    let file = |content: &Content, identity: &FileVersion| FileRecord {
        path: content.path.clone(),
        identity: identity.clone(),
    };
    let (open, contents) = (&basis.open, &basis.contents);
    Ok(SandboxRecord {
        format: SandboxRecord::FORMAT,
        id: new_id().map_err(CreateError::Entropy)?,
        name: spec.name.clone(),
        created_at: SystemTime::now(),
        vcpus: spec.vcpus,
        memory_bytes: spec.memory,
        disk_bytes: spec.disk.bytes(),
        kernel: file(&contents.kernel, &open.kernel_identity),
        image: file(&contents.image, &open.image_identity),
        agent: file(&contents.agent, &open.agent_identity),
        env: spec.env.clone(),
        ephemeral: spec.ephemeral,
        limits: Limits::new(spec.limits, spec.memory),
        network_card: spec.network.is_some(),
        image_defaults: spec.image_defaults.clone(),
        workspace: spec.workspace.as_ref().map(WorkspaceRecord::of),
        mounts: spec.mounts.clone(),
        read_only_root: spec.read_only_root,
    })
}
