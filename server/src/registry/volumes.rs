//! Volumes of the sandboxes of this server: mounts them, and removes volumes that no sandbox has. May not open a file
//! of a volume.

use super::{entry::Entry, error::RegistryError, record::OnTimeout, state::Registry};
use crate::{
    access::keys::Key,
    volumes::{HeldVolumes, MountedVolume, VolumeError, VolumeRecord, WantedMount},
};
use sandboxvm_manager::{MountPath, MountSource, MountSpec, Mounts, SharedVolumeId};
use std::time::{Duration, Instant};

/// A process that has answered a request about files holds its volume until it has ended, which takes milliseconds: a
/// client that removes the volume after the answer must not be refused for that.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);

/// What a new sandbox mounts.
#[derive(Debug)]
pub(super) struct NewMounts {
    pub(super) mounts: Mounts,
    pub(super) volumes: Vec<MountedVolume>,
    /// Keeps the volumes from removal until the sandbox has a record.
    pub(super) _held: HeldVolumes,
}

impl Registry {
    /// Finds the volumes of a new sandbox.
    pub(super) fn mounts(
        &self,
        key: &Key,
        wanted: &[WantedMount],
        on_timeout: OnTimeout,
    ) -> Result<NewMounts, RegistryError> {
        if !wanted.is_empty() && on_timeout == OnTimeout::Pause {
            return Err(RegistryError::Invalid(
                "autoPause: a sandbox with volumes can be paused only without memory; use the mode filesystem"
                    .to_owned(),
            ));
        }
        let names: Vec<String> = wanted.iter().map(|mount| mount.name.clone()).collect();
        let held = self.volumes.hold(&key.id, &names)?;
        let invalid = |error: &dyn std::fmt::Display| RegistryError::Invalid(format!("volumeMounts: {error}"));
        let specs = held.volumes.iter().zip(wanted).map(|(volume, mount)| {
            let at = MountPath::try_from(mount.path.clone()).map_err(|error| invalid(&error))?;
            let VolumeRecord { id, bytes, names, .. } = volume;
            let path = self.manager.shared_volume_path(id);
            Ok(MountSpec { at, source: MountSource::SharedVolume { path, bytes: *bytes, names: *names } })
        });
        let mounts = Mounts::new(specs.collect::<Result<_, RegistryError>>()?).map_err(|error| invalid(&error))?;
        let volumes = held.volumes.iter().zip(wanted).map(|(volume, WantedMount { name, path })| MountedVolume {
            id: volume.id.clone(),
            name: name.clone(),
            path: path.clone(),
        });
        Ok(NewMounts { mounts, volumes: volumes.collect(), _held: held })
    }

    /// Refuses what a sandbox with volumes cannot do.
    pub(super) fn check_no_volumes(&self, entry: &Entry) -> Result<(), RegistryError> {
        if entry.record().volumes.is_empty() { Ok(()) } else { Err(RegistryError::HasVolumes(entry.id.to_string())) }
    }

    /// Removes a volume that no sandbox has. Its files are removed afterwards.
    pub(crate) async fn remove_volume(&self, key: &Key, id: &str) -> Result<(), RegistryError> {
        let volume = self.volumes.find(&key.id, id)?;
        for entry in self.list(&key.id) {
            if entry.record().volumes.iter().any(|mount| mount.id == volume.id) {
                // Forgets it if another process has removed it.
                drop(self.alter(&entry).await);
            }
        }
        let has_it = |id: &SharedVolumeId| {
            self.list(&key.id).iter().any(|entry| entry.record().volumes.iter().any(|mount| mount.id == *id))
        };
        let deadline = Instant::now() + RELEASED_WITHIN;
        loop {
            match self.volumes.remove(&self.manager, &volume, has_it) {
                Err(VolumeError::InUse(_)) if !has_it(&volume.id) && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                removed => break removed?,
            }
        }
        tracing::info!(volume = %volume.id, "volume removed");
        self.sweep_volumes();
        Ok(())
    }

    /// Removes the files of removed volumes and of directories without a record. Uses another thread, since that can
    /// take long.
    pub(crate) fn sweep_volumes(&self) {
        let (manager, program) = (self.manager.clone(), self.bundle.share.clone());
        // The process that removes files ends with the thread that started it.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = manager.sweep_shared_volumes(&program) {
                tracing::warn!(%error, "cannot remove the files of volumes");
            }
        });
    }

    /// Removes what a server that was killed while it made or removed a volume has left.
    pub(super) fn recover_volumes(&self) {
        if let Err(error) = self.volumes.remove_unrecorded(&self.manager) {
            tracing::warn!(%error, "cannot remove the volumes without a record");
        }
        if let Err(error) = self.manager.discard_unfinished_shared_volumes() {
            tracing::warn!(%error, "cannot remove the volumes that were not completed");
        }
        self.sweep_volumes();
    }
}
