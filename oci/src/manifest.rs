//! Manifests and indexes, of the OCI and of docker, as bytes from a hostile source. Parsing is
//! oci-spec's; this module decides which of them this crate accepts. A [`Manifest`] that exists
//! was checked: its layers are few and small enough, and none of them is foreign.

use crate::{
    digest::Digest,
    limits::{Limits, MAX_CONFIG, MAX_MANIFEST},
    platform,
};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use std::collections::HashMap;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Maximum number of images in an index.
const MAX_IN_INDEX: usize = 1000;

/// Why a manifest or index is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not a manifest.
    #[error("invalid manifest: {0}")]
    Malformed(String),
    /// The manifest is larger than 4 MiB.
    #[error("invalid manifest: it has {0} bytes, the maximum is {MAX_MANIFEST}")]
    TooLong(u64),
    /// Docker's first format, which no current registry serves.
    #[error("unsupported manifest: docker's schema 1, expected schema 2 or an OCI manifest")]
    SchemaOne,
    /// The manifest describes something that is not a container image.
    #[error("unsupported manifest: it describes {0:?}, which is not a container image")]
    NotAnImage(String),
    /// A layer whose content is not in the registry.
    #[error("unsupported layer {0}: it is foreign, so the registry does not hold it")]
    Foreign(Digest),
    /// A layer of an unknown format.
    #[error("unsupported layer {digest}: its format is {format:?}, expected a tar archive, plain or with gzip or zstd")]
    Format {
        /// The layer.
        digest: Digest,
        /// Its media type.
        format: String,
    },
    /// The image exceeds a limit.
    #[error("the image is too large: {0}")]
    TooLarge(String),
    /// An index has no image for x86-64 Linux.
    #[error("the image has no variant for linux/amd64, it has: {0}")]
    OtherPlatform(String),
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// A tar archive with gzip.
    Gzip,
    /// A tar archive with zstd.
    Zstd,
}

/// A layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Layer {
    /// Digest of the layer as it is transferred and stored.
    pub digest: Digest,
    /// Size in bytes as it is transferred and stored.
    pub size: u64,
    /// Compression of the archive, as the manifest states it.
    pub compression: Compression,
}

/// A blob, by digest and size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// The manifest of one image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    media_type: String,
    config: Blob,
    layers: Vec<Layer>,
}

/// What a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// An image.
    Image(Manifest),
    /// An index, of which this image was chosen.
    Index(Blob),
}

/// The properties that tell the formats apart. Each is optional, since some programs omit them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Parses and checks the manifest of one image.
    ///
    /// # Errors
    /// Every [`ManifestError`].
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        match Document::parse(bytes, limits)? {
            Document::Image(manifest) => Ok(manifest),
            Document::Index(_) => Err(ManifestError::NotAnImage("an index of images".to_owned())),
        }
    }

    /// Returns the digest of the image's configuration.
    #[must_use]
    pub fn config(&self) -> Digest {
        self.config.digest
    }

    /// Returns the layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the size in bytes of all layers as they are transferred and stored.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    /// Returns the media type under which a registry is sent the manifest.
    pub(crate) fn media_type(&self) -> &str {
        &self.media_type
    }

    pub(crate) fn config_blob(&self) -> Blob {
        self.config
    }

    /// Returns all blobs, each once: the configuration, then the layers.
    pub(crate) fn blobs(&self) -> Vec<Blob> {
        let mut blobs = vec![self.config];
        for layer in &self.layers {
            if blobs.iter().all(|blob| blob.digest != layer.digest) {
                blobs.push(Blob { digest: layer.digest, size: layer.size });
            }
        }
        blobs
    }
}

impl Document {
    pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(ManifestError::TooLong(bytes.len() as u64));
        }
        let kind: Kind = serde_json::from_slice(bytes).map_err(malformed)?;
        if kind.schema_version == Some(1) {
            return Err(ManifestError::SchemaOne);
        }
        match (kind.media_type.as_deref(), kind.manifests.is_some(), kind.layers.is_some()) {
            // Bytes that are both could be a manifest for one program and an index for another.
            (_, true, true) => Err(ManifestError::Malformed("it has layers and manifests".to_owned())),
            (None | Some(OCI_MANIFEST | DOCKER_MANIFEST), _, true) => {
                image(&serde_json::from_slice(bytes).map_err(malformed)?, limits).map(Self::Image)
            }
            (None | Some(OCI_INDEX | DOCKER_LIST), true, _) => {
                let index: ImageIndex = serde_json::from_slice(bytes).map_err(malformed)?;
                chosen(index.manifests()).map(Self::Index)
            }
            (Some(other), ..) => Err(ManifestError::NotAnImage(printable(other))),
            (None, false, false) => Err(ManifestError::Malformed("it has neither layers nor manifests".to_owned())),
        }
    }
}

/// Returns the image for this platform.
pub(crate) fn chosen(manifests: &[Descriptor]) -> Result<Blob, ManifestError> {
    if manifests.len() > MAX_IN_INDEX {
        return Err(ManifestError::TooLarge(format!("an index of more than {MAX_IN_INDEX} images")));
    }
    let chosen = platform::choose(manifests).ok_or_else(|| ManifestError::OtherPlatform(platform::names(manifests)))?;
    let blob = blob(chosen)?;
    if blob.size > MAX_MANIFEST {
        return Err(ManifestError::TooLong(blob.size));
    }
    Ok(blob)
}

fn image(manifest: &ImageManifest, limits: &Limits) -> Result<Manifest, ManifestError> {
    let config_type = manifest.config().media_type().to_string();
    if config_type != OCI_CONFIG && config_type != DOCKER_CONFIG {
        return Err(ManifestError::NotAnImage(printable(&config_type)));
    }
    let config = blob(manifest.config())?;
    if config.size > MAX_CONFIG {
        return Err(ManifestError::TooLarge(format!(
            "a configuration of {} bytes, the maximum is {MAX_CONFIG}",
            config.size
        )));
    }
    if manifest.layers().len() > limits.layers {
        let count = manifest.layers().len();
        return Err(ManifestError::TooLarge(format!("{count} layers, the maximum is {}", limits.layers)));
    }
    let layers = manifest.layers().iter().map(|layer| checked_layer(layer, limits)).collect::<Result<Vec<_>, _>>()?;
    let media_type = manifest.media_type().as_ref().map_or_else(|| OCI_MANIFEST.to_owned(), ToString::to_string);
    let manifest = Manifest { media_type, config, layers };
    let sizes: HashMap<_, _> = manifest.blobs().iter().map(|blob| (blob.digest, blob.size)).collect();
    if let Some(layer) = manifest.layers.iter().find(|layer| sizes.get(&layer.digest) != Some(&layer.size)) {
        return Err(ManifestError::Malformed(format!("it states two sizes for {}", layer.digest)));
    }
    if manifest.size() > limits.image_bytes {
        let size = manifest.size();
        return Err(ManifestError::TooLarge(format!("{size} bytes, the maximum is {}", limits.image_bytes)));
    }
    Ok(manifest)
}

fn checked_layer(layer: &Descriptor, limits: &Limits) -> Result<Layer, ManifestError> {
    let Blob { digest, size } = blob(layer)?;
    if size > limits.layer_bytes {
        return Err(ManifestError::TooLarge(format!("a layer of {size} bytes, the maximum is {}", limits.layer_bytes)));
    }
    if layer.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
        return Err(ManifestError::Foreign(digest));
    }
    let compression = match layer.media_type() {
        MediaType::ImageLayer => Compression::None,
        MediaType::ImageLayerGzip => Compression::Gzip,
        MediaType::ImageLayerZstd => Compression::Zstd,
        MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => return Err(ManifestError::Foreign(digest)),
        other => match other.as_ref() {
            "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
            "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => return Err(ManifestError::Foreign(digest)),
            other => return Err(ManifestError::Format { digest, format: printable(other) }),
        },
    };
    Ok(Layer { digest, size, compression })
}

pub(crate) fn blob(descriptor: &Descriptor) -> Result<Blob, ManifestError> {
    let digest = descriptor.digest().as_ref().parse();
    let digest = digest.map_err(|error: crate::DigestError| ManifestError::Malformed(error.to_string()))?;
    Ok(Blob { digest, size: descriptor.size() })
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn malformed(error: serde_json::Error) -> ManifestError {
    ManifestError::Malformed(printable(&error.to_string()))
}

/// Returns what can be printed of a hostile text, at most 200 characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn descriptor(kind: &str, size: u64) -> Value {
        json!({"mediaType": kind, "digest": Digest::of(kind.as_bytes()).to_string(), "size": size})
    }

    fn manifest(layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": descriptor(DOCKER_CONFIG, 10), "layers": layers})
    }

    fn parse(value: &Value) -> Result<Document, ManifestError> {
        Document::parse(value.to_string().as_bytes(), &Limits::default())
    }

    fn error(value: &Value) -> String {
        parse(value).unwrap_err().to_string()
    }

    const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

    #[test]
    fn media_types_of_docker_and_of_the_oci_are_accepted() {
        let layers = [
            descriptor(GZIP, 7),
            descriptor("application/vnd.oci.image.layer.v1.tar+zstd", 8),
            descriptor("application/vnd.oci.image.layer.v1.tar", 9),
        ];
        let Document::Image(manifest) = parse(&manifest(&layers)).unwrap() else { panic!("not an image") };
        let kinds: Vec<_> = manifest.layers().iter().map(|layer| layer.compression).collect();
        assert_eq!(kinds, [Compression::Gzip, Compression::Zstd, Compression::None]);
        assert_eq!((manifest.size(), manifest.media_type()), (24, DOCKER_MANIFEST));
    }

    #[test]
    fn foreign_layers_and_unknown_formats_are_rejected() {
        let mut with_urls = descriptor(GZIP, 7);
        with_urls["urls"] = json!(["https://elsewhere.example/x"]);
        assert!(error(&manifest(&[with_urls])).contains("foreign"));
        let foreign = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", 7);
        assert!(error(&manifest(&[foreign])).contains("foreign"));
        assert!(error(&manifest(&[descriptor("text/plain", 7)])).contains("its format is \"text/plain\""));
    }

    #[test]
    fn limits_and_old_formats_are_enforced() {
        assert!(error(&manifest(&vec![descriptor(GZIP, 1); 251])).contains("251 layers"));
        assert!(error(&manifest(&[descriptor(GZIP, u64::MAX)])).contains("too large"));
        assert!(error(&manifest(&[descriptor(GZIP, 1), descriptor(GZIP, 2)])).contains("two sizes"));
        assert!(error(&manifest(&vec![descriptor(GZIP, 12 << 30); 3])).contains("too large"));
        assert_eq!(parse(&json!({"schemaVersion": 1, "fsLayers": []})), Err(ManifestError::SchemaOne));
        assert!(error(&json!({"schemaVersion": 2, "layers": [], "manifests": []})).contains("layers and manifests"));
        let long = vec![b' '; (4 << 20) + 1];
        assert!(matches!(Document::parse(&long, &Limits::default()), Err(ManifestError::TooLong(_))));
        let mut helm = manifest(&[]);
        helm["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        assert!(error(&helm).contains("not a container image"));
    }

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Value {
        let manifests: Vec<_> = platforms
            .iter()
            .map(|(os, arch, variant)| {
                let mut entry = descriptor(OCI_MANIFEST, 5);
                entry["digest"] = json!(Digest::of(format!("{os}{arch}{variant:?}").as_bytes()));
                entry["platform"] = json!({"os": os, "architecture": arch});
                if let Some(variant) = variant {
                    entry["platform"]["variant"] = json!(variant);
                }
                entry
            })
            .collect();
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
    }

    #[test]
    fn index_selects_the_baseline_of_the_platform() {
        let all = [
            ("linux", "arm64", None),
            ("linux", "amd64", Some("v3")),
            ("linux", "amd64", Some("v2")),
            ("linux", "amd64", None),
        ];
        let Document::Index(chosen) = parse(&index(&all)).unwrap() else { panic!("not an index") };
        assert_eq!(chosen.digest, Digest::of(b"linuxamd64None"));
        let Document::Index(chosen) = parse(&index(&all[..3])).unwrap() else { panic!("not an index") };
        assert_eq!(chosen.digest, Digest::of(b"linuxamd64Some(\"v2\")"));
        let other = [("linux", "arm64", Some("v8")), ("windows", "amd64", None), ("unknown", "unknown", None)];
        assert_eq!(
            error(&index(&other)),
            "the image has no variant for linux/amd64, it has: linux/arm64/v8, windows/amd64"
        );
    }
}
