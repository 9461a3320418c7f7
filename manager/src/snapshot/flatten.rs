//! Keeps the chain of a disk's layers short, so that a sandbox can be snapshotted and forked any
//! number of times. This is done under the change lock, before a snapshot or fork would make a long
//! chain longer. The sandbox keeps running meanwhile.
//!
//! First the VMM merges its frozen layers into a new file, which may take long and changes nothing:
//! if this process is killed by then, it leaves a file that the next change removes. Then, as in
//! any change, the lineage announces the new chain, the VMM is asked to use it, which it does
//! immediately, and the header of the file shows which of the two chains the VMM uses. Both chains
//! have the same content.

use crate::{
    home::directory::DirectoryError,
    snapshot::{
        change::Running,
        lineage::{Files, Kind, LineageError, free_name},
    },
    vmm::{
        control::{ControlClient, ControlError},
        descriptors::LaunchFiles,
        wire::WireError,
    },
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::vmm::{ControlReply, ControlRequest, MAX_DISK_LAYERS, MergeLayersRequest};
use std::{fs::File, time::Duration};

/// Maximum number of frozen layers in a chain. Merging reads and writes everything that was ever
/// written to the disk, so it is done rarely; a longer chain costs little but descriptors.
const MAX_FROZEN: usize = 24;
const _: () = assert!(MAX_FROZEN + 2 <= MAX_DISK_LAYERS, "there must be room where merging fails");
/// Maximum time to copy a large disk on a slow host.
const MERGED_WITHIN: Duration = Duration::from_secs(600);

/// Why a chain of layers was not shortened.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// The file for the merged layer cannot be created.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The lineage of the sandbox cannot be written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The VMM refused the request or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The sandbox could not be reached again after the attempt.
    #[error("{0}")]
    Unreachable(String),
    /// The chain has its maximum length and cannot grow.
    #[error(
        "the disk of the sandbox has {MAX_DISK_LAYERS} layers, which is the maximum, and they cannot be merged: {0}"
    )]
    Full(Box<FlattenError>),
}

/// Merges the frozen layers of the disk if there are many. If that fails, as on a full disk or with
/// an older VMM, the chain stays as it is, as long as it can still grow.
pub(crate) fn flatten_when_long<'a>(running: &'a mut Running<'_>) -> BoxFuture<'a, Result<(), FlattenError>> {
    Box::pin(async move {
        if running.lineage.files.disk.len() <= MAX_FROZEN + 1 {
            return Ok(());
        }
        let Err(error) = flatten(running).await else { return Ok(()) };
        // An older VMM closes the connection when it receives a request that it does not know.
        running.reopen().await.map_err(|error| FlattenError::Unreachable(error.to_string()))?;
        if running.lineage.files.disk.len() < MAX_DISK_LAYERS {
            Ok(())
        } else {
            Err(FlattenError::Full(Box::new(error)))
        }
    })
}

async fn flatten(running: &mut Running<'_>) -> Result<(), FlattenError> {
    let directory = running.directory();
    let name = free_name(directory, Kind::Disk)?;
    let file = directory.create_file(&name)?;
    let files = &running.lineage.files;
    let next = Files {
        disk: std::iter::once(name.clone()).chain(files.disk.last().cloned()).collect(),
        baseline: files.baseline.clone(),
    };
    if let Err(error) = merge(&mut running.control, &file).await {
        // The VMM was not asked to use the file.
        directory.unlink(&name)?;
        return Err(error.into());
    }
    running.announce(next.clone(), &name)?;
    running.control.ask(ControlRequest::UseMerged).await?;
    Ok(running.complete(next)?)
}

async fn merge(control: &mut ControlClient, file: &File) -> Result<(), ControlError> {
    let mut sent = LaunchFiles::default();
    let request = ControlRequest::MergeLayers(MergeLayersRequest { files: vec![sent.add(file)] });
    match control.request_with(request, &sent, MERGED_WITHIN).await?? {
        ControlReply::Done => Ok(()),
        _ => Err(WireError::Unexpected("another request's reply").into()),
    }
}
