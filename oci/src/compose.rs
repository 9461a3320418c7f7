//! New images: an image of the store, or nothing, with layers on top and another configuration.
//! Layers are hostile bytes, which are hashed and compressed but never read as archives. May not
//! give a blob its name before a hold names it, nor tag an image before all of it is stored.

use crate::{
    config::{ConfigError, Configuration, ImageConfig},
    digest::{Digest, Hasher},
    images::{self, Images},
    limits::{MAX_CONFIG, MAX_MANIFEST},
    manifest::{Blob, Compression, DOCKER_MANIFEST, Layer, Manifest, ManifestError, OCI_MANIFEST, printable},
    store::{Staged, StoreError},
};
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use std::io::{self, Read, Write};

/// Keys of a configuration that describe how the base was built, and not the new image.
const NOT_INHERITED: &[&str] = &["id", "parent", "parent_id", "container", "container_config", "docker_version"];

/// Why an image is not composed. The store has no part of it, except as garbage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// A layer cannot be read.
    #[error("cannot read the new layer: {0}")]
    Input(#[source] io::Error),
    /// The base image is missing, or a reference is invalid.
    #[error(transparent)]
    Image(#[from] Box<images::Error>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest of the base or of the new image is not accepted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The configuration of the base or of the new image is not accepted.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What a new image has above its base. `R` is a layer as a plain tar archive with whiteouts.
#[derive(Debug)]
pub enum Addition<R> {
    /// A layer.
    Layer {
        /// The archive.
        archive: R,
        /// What made it, for the history of the image.
        created_by: String,
    },
    /// A layer that the store may have, such as one of an image that was composed before.
    Stored {
        /// The layer, which a program compressed before.
        layer: Layer,
        /// Digest of the plain archive. It is not checked here, but by every program that unpacks
        /// the layer.
        diff_id: Digest,
        /// What made it, for the history of the image.
        created_by: String,
    },
    /// A line of the history that added no layer.
    Setting {
        /// What it was.
        created_by: String,
    },
}

/// A new image, apart from its layers.
#[derive(Debug, Clone)]
pub struct Composition<'a> {
    /// The image below, by reference or by the digest of its manifest. `None`: an empty image.
    pub base: Option<&'a str>,
    /// How the program of the image is started. Nothing of the base's is inherited.
    pub config: ImageConfig,
    /// When the image was made, as RFC 3339 writes it.
    pub created: String,
    /// The reference that the image receives. Without one, it is garbage unless a caller keeps it.
    pub tag: Option<&'a str>,
}

/// The documents of the base that the new ones continue.
#[derive(Default)]
struct Base {
    is_docker: bool,
    layers: Vec<Layer>,
    diff_ids: Vec<Digest>,
    config: Map<String, Value>,
}

impl Images {
    /// Stores an image that consists of `composition` and `additions`, lowest first, and returns the
    /// digest of its manifest. Layers are compressed with gzip while they are read, so that every
    /// version of docker runs the image. Its manifest is of the family of the base: of docker or of
    /// the OCI, and of the OCI without a base. The same arguments give the same image. Blocks the
    /// thread.
    ///
    /// # Errors
    /// Fails if the store does not have the base or a layer of [`Addition::Stored`], if a layer cannot be read, or if the image would
    /// exceed the limits of the store. The tag is unchanged then.
    pub fn compose<R: Read>(
        &self,
        composition: &Composition<'_>,
        additions: impl IntoIterator<Item = Addition<R>>,
    ) -> Result<Digest, ComposeError> {
        let store = self.store();
        let tag = composition.tag.map(|tag| self.new_tag(tag)).transpose().map_err(Box::new)?;
        let base_digest = composition.base.map(|base| self.digest_of(base)).transpose().map_err(Box::new)?;
        let mut base = base_digest.map(|digest| self.base(digest)).transpose()?.unwrap_or_default();
        let mut history = inherited_history(&base);
        let mut staged = Vec::new();
        for addition in additions {
            let (created_by, is_empty) = match addition {
                Addition::Layer { mut archive, created_by } => {
                    let (file, diff_id) = self.compressed(&mut archive)?;
                    let Blob { digest, size } = file.blob();
                    base.layers.push(Layer { digest, size, compression: Compression::Gzip });
                    base.diff_ids.push(diff_id);
                    staged.push(file);
                    (created_by, false)
                }
                Addition::Stored { layer, diff_id, created_by } => {
                    base.layers.push(layer);
                    base.diff_ids.push(diff_id);
                    (created_by, false)
                }
                Addition::Setting { created_by } => (created_by, true),
            };
            let mut entry = json!({"created": composition.created, "created_by": created_by});
            if is_empty {
                entry["empty_layer"] = json!(true);
            }
            history.push(entry);
        }
        let (config, manifest) = documents(base, composition, &history)?;
        let parsed = Manifest::parse(&manifest, store.limits())?;
        Configuration::parse(&config)?.check(&parsed)?;
        let digest = Digest::of(&manifest);
        let held: Vec<_> = parsed.blobs().iter().map(|blob| blob.digest).chain([digest]).collect();
        let hold = store.hold(&held)?;
        for file in staged {
            file.publish(store, &hold)?;
        }
        // The base, or a layer of `Stored`, may have been removed before its blobs were held.
        if let Some(missing) = parsed.layers().iter().find(|layer| store.open_blob(layer.digest).is_err()) {
            return Err(StoreError::Missing(missing.digest).into());
        }
        store.write_document(&hold, &config)?;
        store.write_document(&hold, &manifest)?;
        if let Some(tag) = tag {
            store.set_tag(&tag, digest, digest)?;
        }
        Ok(digest)
    }

    fn base(&self, digest: Digest) -> Result<Base, ComposeError> {
        let store = self.store();
        let manifest = Manifest::parse(&store.read_document(digest, MAX_MANIFEST)?, store.limits())?;
        let bytes = store.read_document(manifest.config(), MAX_CONFIG)?;
        let configuration = Configuration::parse(&bytes)?;
        configuration.check(&manifest)?;
        let config = serde_json::from_slice(&bytes);
        let config = config.map_err(|error| ConfigError::Malformed(printable(&error.to_string())))?;
        let is_docker = manifest.media_type() == DOCKER_MANIFEST;
        Ok(Base { is_docker, layers: manifest.layers().to_vec(), diff_ids: configuration.diff_ids, config })
    }

    /// Copies a layer into an unfinished file of the store. Returns it, and the digest of the plain
    /// archive.
    fn compressed(&self, archive: &mut impl Read) -> Result<(Staged, Digest), ComposeError> {
        let mut plain = Hasher::default();
        // The header has no time and no name, so the same archive gives the same bytes.
        let mut encoder = GzEncoder::new(Output(self.store().stage()?, None), flate2::Compression::default());
        let mut buffer = vec![0; 1 << 17];
        loop {
            let count = match archive.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ComposeError::Input(error)),
            };
            plain.update(&buffer[..count]);
            if let Err(error) = encoder.write_all(&buffer[..count]) {
                return Err(encoder.get_mut().failure(error));
            }
        }
        if let Err(error) = encoder.try_finish() {
            return Err(encoder.get_mut().failure(error));
        }
        let output = encoder.finish().map_err(ComposeError::Input)?;
        Ok((output.0, plain.finish()))
    }
}

/// A staged file as a writer, which keeps the error that `io::Error` cannot express.
struct Output(Staged, Option<StoreError>);

impl Output {
    fn failure(&mut self, error: io::Error) -> ComposeError {
        self.1.take().map_or(ComposeError::Input(error), ComposeError::Store)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let text = error.to_string();
                self.1 = Some(error);
                Err(io::Error::other(text))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the history of the base with one line for each of its layers: docker counts them, and
/// programs leave lines out.
fn inherited_history(base: &Base) -> Vec<Value> {
    let stated = base.config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    let is_layer = |entry: &&Value| entry.get("empty_layer").and_then(Value::as_bool) != Some(true);
    if stated.iter().all(Value::is_object) && stated.iter().filter(is_layer).count() == base.layers.len() {
        return stated;
    }
    base.layers.iter().map(|_| json!({"comment": "a layer of the base image"})).collect()
}

/// Returns configuration and manifest.
fn documents(base: Base, composition: &Composition<'_>, history: &[Value]) -> Result<(Vec<u8>, Vec<u8>), ComposeError> {
    let mut config = base.config;
    for key in NOT_INHERITED {
        config.remove(*key);
    }
    let malformed = |error: serde_json::Error| ConfigError::Malformed(printable(&error.to_string()));
    config.insert("created".into(), json!(composition.created));
    config.insert("architecture".into(), json!("amd64"));
    config.insert("os".into(), json!("linux"));
    config.insert("config".into(), serde_json::to_value(&composition.config).map_err(malformed)?);
    config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": base.diff_ids}));
    config.insert("history".into(), json!(history));
    let config = serde_json::to_vec(&config).map_err(malformed)?;
    let family = if base.is_docker { "docker.container.image.v1" } else { "oci.image.config.v1" };
    let layers: Vec<_> = base
        .layers
        .iter()
        .map(|layer| {
            let kind = match (base.is_docker, layer.compression) {
                (true, Compression::None) => "docker.image.rootfs.diff.tar",
                (true, Compression::Gzip) => "docker.image.rootfs.diff.tar.gzip",
                (true, Compression::Zstd) => "docker.image.rootfs.diff.tar.zstd",
                (false, Compression::None) => "oci.image.layer.v1.tar",
                (false, Compression::Gzip) => "oci.image.layer.v1.tar+gzip",
                (false, Compression::Zstd) => "oci.image.layer.v1.tar+zstd",
            };
            json!({"mediaType": format!("application/vnd.{kind}"), "digest": layer.digest, "size": layer.size})
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": if base.is_docker { DOCKER_MANIFEST } else { OCI_MANIFEST },
        "config": {"mediaType": format!("application/vnd.{family}+json"), "digest": Digest::of(&config), "size": config.len()},
        "layers": layers,
    });
    Ok((config, serde_json::to_vec(&manifest).map_err(malformed)?))
}
