//! Volumes of keys as clients see them, and the right to the files of one volume. Never reads the files: they pass
//! between the front and a confined process, which the launcher starts with one request. The launcher hands
//! its connection over.

use super::{Launcher, operations::value};
use crate::{
    access::keys::{Key, KeyId},
    channel::{
        failure::{Failure, Why},
        request::ContentClaim,
    },
    concurrency::Place,
    volumes::VolumeRecord,
};
use sandboxvm_manager::{ContentLimits, SharedVolumeId};
use serde_json::{Value, json};
use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Instant, SystemTime},
};
use tokio::sync::oneshot;

/// Longest a token could be.
const MAX_TOKEN: usize = 128;

impl Launcher {
    pub(super) fn create_volume(&self, key: &Key, name: &str) -> Result<Value, Failure> {
        let volume = self.registry.volumes.create(&self.registry.manager, &key.id, key.limits.volumes, name)?;
        tracing::info!(volume = %volume.id, "volume created");
        Ok(self.with_token(key, &volume))
    }

    pub(super) fn list_volumes(&self, key: &Key) -> Result<Value, Failure> {
        let row = |volume: &VolumeRecord| json!({ "volumeID": volume.id.as_str(), "name": volume.name.as_str() });
        value(&self.registry.volumes.list(&key.id).iter().map(row).collect::<Vec<_>>())
    }

    pub(super) fn show_volume(&self, key: &Key, id: &str) -> Result<Value, Failure> {
        Ok(self.with_token(key, &self.registry.volumes.find(&key.id, id)?))
    }

    fn with_token(&self, key: &Key, volume: &VolumeRecord) -> Value {
        // The token permits changes of files, which a read-only key may not make. Clients expect the field.
        let token = if key.limits.read_only { String::new() } else { self.credentials.tokens.of_volume(&volume.id) };
        json!({ "volumeID": volume.id.as_str(), "name": volume.name.as_str(), "token": token })
    }

    /// Returns the owner of a volume, and a connection to a process that serves the request of the claim.
    pub(super) async fn content(self: Arc<Self>, claim: ContentClaim) -> Result<(KeyId, OwnedFd), Failure> {
        let denied = || Failure::new(Why::Unauthorized, "the token of the volume is not valid");
        let ContentClaim { id, token, request } = claim;
        let id = SharedVolumeId::try_from(id).map_err(|_| denied())?;
        // Before the volume is looked up: a client without its token does not learn whether it exists.
        if token.len() > MAX_TOKEN || !self.credentials.tokens.opens_volume(&id, token.as_bytes()) {
            return Err(denied());
        }
        // A token is valid forever, and the right of the key that it was given to is not.
        let held = self.registry.volumes.hold_any(&id);
        let (VolumeRecord { owner, bytes, names, .. }, held) =
            held.ok_or_else(|| Failure::new(Why::NotFound, format!("volume {id} was not found")))?;
        let permits = self.credentials.keys.permits(&owner, request.changes(), SystemTime::now());
        if !permits.map_err(|error| Failure::internal(error.to_string()))? {
            return Err(denied());
        }
        let rate = self.config.requests_per_second;
        self.content_pace.take(&owner, rate, Instant::now()).map_err(|_| {
            Failure::new(
                Why::Quota,
                format!("an API key is limited to {rate} requests per second about files of volumes"),
            )
        })?;
        let place: Place =
            self.content_places.try_enter(&owner, None).map_err(|full| Failure::new(Why::Quota, full.to_string()))?;
        let (begun, has_begun) = oneshot::channel();
        // The process ends with the thread that started it, so that waits for it.
        tokio::task::spawn_blocking(move || {
            let (manager, program) = (&self.registry.manager, &self.registry.bundle.share);
            match manager.serve_content(program, &id, ContentLimits { bytes, names }, &request) {
                Err(error) => drop(begun.send(Err(error))),
                Ok((connection, process)) => {
                    drop(begun.send(connection.set_nonblocking(true).map(|()| connection)));
                    match process.wait() {
                        Ok(None) => {}
                        // A client that went away ends it too.
                        Ok(Some(words)) => tracing::debug!(volume = %id, words, "a request about a volume failed"),
                        Err(error) => tracing::warn!(volume = %id, %error, "cannot wait for a process"),
                    }
                }
            }
            // The volume can be removed from now on.
            drop((place, held));
        });
        let failed = |error: &dyn std::fmt::Display| Failure::internal(format!("cannot serve the volume: {error}"));
        let connection = has_begun.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        Ok((owner, connection.into()))
    }
}
