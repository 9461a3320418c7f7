//! Writing an image as a tar archive that is both an OCI layout and, by its `manifest.json`, an
//! archive of docker.

use crate::{
    digest::Digest,
    limits::MAX_MANIFEST,
    manifest::Manifest,
    store::{Store, StoreError},
};
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use serde_json::json;
use std::io::{self, Read, Write};

/// Why an image is not saved. The output is incomplete.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Reading a blob or writing the archive failed.
    #[error("cannot write the image archive: {0}")]
    Output(#[from] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored manifest is not accepted.
    #[error(transparent)]
    Manifest(#[from] crate::manifest::ManifestError),
}

/// Writes the image with this manifest, under this name.
pub(crate) fn save(store: &Store, digest: Digest, name: &str, output: impl Write) -> Result<(), SaveError> {
    let bytes = store.read_document(digest, MAX_MANIFEST)?;
    let manifest = Manifest::parse(&bytes, store.limits())?;
    let blobs = manifest.blobs();
    let _hold = store.hold(&blobs.iter().map(|blob| blob.digest).chain([digest]).collect::<Vec<_>>())?;
    let path = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": manifest.media_type(), "digest": digest, "size": bytes.len(),
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}]});
    let layers: Vec<_> = manifest.layers().iter().map(|layer| path(layer.digest)).collect();
    let docker = json!([{"Config": path(manifest.config()), "RepoTags": [name], "Layers": layers}]);
    let mut archive = Writer::new(output);
    document(&mut archive, "oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    document(&mut archive, "index.json", index.to_string().as_bytes())?;
    document(&mut archive, "manifest.json", docker.to_string().as_bytes())?;
    document(&mut archive, &path(digest), &bytes)?;
    let mut buffer = vec![0; 1 << 17];
    for blob in blobs {
        archive.begin(&entry(&path(blob.digest), blob.size))?;
        let mut file = store.open_blob(blob.digest)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => archive.content(&buffer[..count])?,
            }
        }
        archive.end()?;
    }
    Ok(archive.finish()?.flush()?)
}

fn document(archive: &mut Writer<impl Write>, path: &str, bytes: &[u8]) -> io::Result<()> {
    archive.begin(&entry(path, bytes.len() as u64))?;
    archive.content(bytes)?;
    archive.end()
}

fn entry(path: &str, size: u64) -> Entry {
    let kind = Kind::File { size, extents: None };
    let (path, modified) = (path.as_bytes().to_vec(), Timestamp::default());
    Entry { path, kind, mode: 0o644, uid: 0, gid: 0, modified, attributes: Vec::new() }
}
