//! Keeping a disk's chain of layers short, so that a sandbox can be snapshotted and forked without end. Done before a
//! snapshot or fork would make a long chain longer, under the change lock; the sandbox runs on meanwhile.
//!
//! First the VMM merges its frozen layers into a new file, which may take long and changes nothing: whoever is killed
//! by then leaves a file that the next change takes away. Then, as with any change, the lineage says what may come to
//! be, the VMM is asked for it, which it does at once, and the file's header tells which of the two chains it uses.
//! Both read the same.

use crate::{
    control::{ControlClient, ControlError},
    directory::{DirectoryError, SandboxDirectory},
    launch::LaunchFiles,
    lineage::{Files, Kind, Lineage, LineageError, free_name},
    sandbox::Sandbox,
    wire::WireError,
};
use sandboxvm_protocol::vmm::{ControlReply, ControlRequest, MAX_DISK_LAYERS, MergeLayersRequest};
use std::{fs::File, time::Duration};

/// Frozen layers that a chain may have. Merging costs reading and writing all that was ever written to the disk, so it is
/// done rarely; a longer chain costs little but descriptors.
const MAX_FROZEN: usize = 24;
const _: () = assert!(MAX_FROZEN + 2 <= MAX_DISK_LAYERS, "there must be room where merging fails");
/// Copying a large disk on a slow host.
const MERGED_WITHIN: Duration = Duration::from_secs(600);

/// Why a chain of layers stayed as long as it was.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// No file for the merged layer.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The sandbox's own record.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The VMM refused or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// It cannot go on like this.
    #[error(
        "the disk of the sandbox has {MAX_DISK_LAYERS} layers, which is the maximum, and they cannot be merged: {0}"
    )]
    Full(Box<FlattenError>),
}

impl Sandbox {
    /// Merges the disk's frozen layers where there are many. Where that fails, as on a full disk or with an older VMM,
    /// the chain stays, as long as it can grow.
    pub(crate) async fn flatten_when_long(
        &self,
        control: &mut ControlClient,
        lineage: &mut Lineage,
    ) -> Result<(), FlattenError> {
        if lineage.files.disk.len() <= MAX_FROZEN + 1 {
            return Ok(());
        }
        let Err(error) = flatten(&self.directory, control, lineage).await else { return Ok(()) };
        // An older VMM hangs up on what it does not know.
        *control = self.control().await?;
        // See `Lineage::read`.
        control.stats().await?;
        *lineage = Lineage::read(&self.directory)?;
        if lineage.files.disk.len() < MAX_DISK_LAYERS { Ok(()) } else { Err(FlattenError::Full(Box::new(error))) }
    }
}

async fn flatten(
    directory: &SandboxDirectory,
    control: &mut ControlClient,
    lineage: &mut Lineage,
) -> Result<(), FlattenError> {
    let name = free_name(directory, Kind::Disk)?;
    let file = directory.create_file(&name)?;
    let next = Files {
        disk: std::iter::once(name.clone()).chain(lineage.files.disk.last().cloned()).collect(),
        baseline: lineage.files.baseline.clone(),
    };
    let announced = match merge(control, &file).await {
        Ok(()) => lineage.announce(directory, next.clone()).map_err(FlattenError::from),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = announced {
        // Nobody was told to use it.
        directory.unlink(&name)?;
        return Err(error);
    }
    match control.ask(ControlRequest::UseMerged).await {
        Ok(()) => Ok(lineage.complete(directory, next)?),
        Err(error) => Err(error.into()),
    }
}

async fn merge(control: &mut ControlClient, file: &File) -> Result<(), ControlError> {
    let mut sent = LaunchFiles::default();
    let request = ControlRequest::MergeLayers(MergeLayersRequest { files: vec![sent.add(file)] });
    match control.request_with(&request, &sent, MERGED_WITHIN).await? {
        ControlReply::Done => Ok(()),
        ControlReply::Failed { message } => Err(ControlError::Refused(message)),
        _ => Err(WireError::Unexpected("another request's reply").into()),
    }
}
