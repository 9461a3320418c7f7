//! From the files of an archive or layout to images of the store.

use super::{error::LoadError, members::Members};
use crate::{
    config::Configuration,
    digest::Digest,
    limits::{MAX_CONFIG, MAX_MANIFEST},
    manifest::{self, Blob, Document, Manifest, ManifestError, OCI_MANIFEST, printable},
    reference::Reference,
    store::StoreError,
};
use oci_spec::image::ImageIndex;
use serde::Deserialize;
use serde_json::json;

/// Maximum number of images of an archive.
const MAX_IMAGES: usize = 64;
/// Maximum number of names of an image.
const MAX_NAMES: usize = 64;

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The tags that it received.
    pub references: Vec<Reference>,
    /// Digest of its manifest.
    pub manifest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// What the images of a source are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    /// A reference that replaces the one in the source, which must have one image.
    pub(crate) given: Option<&'a Reference>,
    /// Registry of names that state none. `None`: docker's default.
    pub(crate) registry: Option<&'a str>,
}

/// Loads every image.
pub(crate) fn load(mut members: Members<'_>, names: Names<'_>) -> Result<Vec<Loaded>, LoadError> {
    let docker: Vec<DockerImage> = match members.document("manifest.json", MAX_MANIFEST)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(malformed)?,
        None => Vec::new(),
    };
    let Some(index) = members.document("index.json", MAX_MANIFEST)? else {
        if docker.is_empty() {
            return Err(LoadError::Malformed("it has neither index.json nor manifest.json".into()));
        }
        check_count(docker.len(), names)?;
        return docker.iter().map(|image| from_docker(&mut members, image, names)).collect();
    };
    let index: ImageIndex = serde_json::from_slice(&index).map_err(malformed)?;
    let mut loaded: Vec<Loaded> = Vec::new();
    // An index of one name may list the image for several platforms.
    let entries = if names.given.is_some() && index.manifests().len() > 1 {
        vec![manifest::chosen(index.manifests()).map(|blob| (blob, None))?]
    } else {
        index
            .manifests()
            .iter()
            .map(|entry| {
                let annotations = entry.annotations().as_ref();
                let own = annotations.and_then(|all| {
                    let stated = |key: &str| all.get(key).filter(|text| text.contains(':'));
                    stated("io.containerd.image.name").or_else(|| stated("org.opencontainers.image.ref.name")).cloned()
                });
                Ok((manifest::blob(entry)?, own))
            })
            .collect::<Result<Vec<_>, ManifestError>>()?
    };
    check_count(entries.len(), names)?;
    for (blob, own) in entries {
        let fallback = if docker.len() == 1 { docker[0].repo_tags.clone().unwrap_or_default() } else { Vec::new() };
        let references = references(names, own.map_or(fallback, |own| vec![own]))?;
        let manifest = from_oci(&mut members, blob, &references)?;
        match loaded.iter_mut().find(|other| other.manifest == manifest) {
            Some(other) => other.references.extend(references),
            None => loaded.push(Loaded { references, manifest }),
        }
    }
    Ok(loaded)
}

fn check_count(images: usize, names: Names<'_>) -> Result<(), LoadError> {
    if images > MAX_IMAGES {
        return Err(LoadError::TooLarge(format!("{images} images, the maximum is {MAX_IMAGES}")));
    }
    if images > 1 && names.given.is_some() {
        return Err(LoadError::Malformed("it has several images, so it cannot receive one name".into()));
    }
    Ok(())
}

fn references(names: Names<'_>, own: Vec<String>) -> Result<Vec<Reference>, LoadError> {
    if let Some(name) = names.given {
        return Ok(vec![name.clone()]);
    }
    if own.len() > MAX_NAMES {
        return Err(LoadError::TooLarge(format!("an image with {} names, the maximum is {MAX_NAMES}", own.len())));
    }
    let parsed = own.iter().map(|text| Reference::parse(text, names.registry)).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(|error| LoadError::Malformed(error.to_string()))?;
    if parsed.is_empty() { Err(LoadError::NoName) } else { Ok(parsed) }
}

fn from_oci(members: &mut Members<'_>, top: Blob, references: &[Reference]) -> Result<Digest, LoadError> {
    let mut blob = top;
    for _ in 0..2 {
        let bytes = verified(members, blob)?;
        match Document::parse(&bytes, members.store().limits())? {
            Document::Index(chosen) => blob = chosen,
            Document::Image(manifest) => {
                for layer in manifest.blobs() {
                    check(layer, members.content(&path(layer.digest))?.0)?;
                }
                let config = members.document(&path(manifest.config()), MAX_CONFIG)?.unwrap_or_default();
                Configuration::parse(&config)?.check(&manifest)?;
                return finish(members, &manifest, &bytes, top.digest, references);
            }
        }
    }
    Err(LoadError::Malformed("an index leads to another index".into()))
}

/// Docker's format has no manifest of the image, so one is made.
fn from_docker(members: &mut Members<'_>, image: &DockerImage, names: Names<'_>) -> Result<Loaded, LoadError> {
    let references = references(names, image.repo_tags.clone().unwrap_or_default())?;
    if image.layers.len() > members.store().limits().layers {
        return Err(LoadError::TooLarge(format!("{} layers", image.layers.len())));
    }
    let config = members.document(&image.config, MAX_CONFIG)?;
    let config = config.ok_or_else(|| LoadError::Malformed(format!("{} is missing", printable(&image.config))))?;
    let parsed = Configuration::parse(&config)?;
    let mut layers = Vec::new();
    for (position, name) in image.layers.iter().enumerate() {
        let (blob, beginning) = members.content(name)?;
        let kind = match &beginning[..] {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
            _ => "",
        };
        let stated = parsed.diff_ids.get(position).copied();
        if let Some(expected) = stated.filter(|stated| kind.is_empty() && *stated != blob.digest) {
            return Err(StoreError::WrongDigest { expected, actual: blob.digest }.into());
        }
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{kind}");
        layers.push(json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size}));
    }
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()});
    let bytes = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}).to_string();
    let manifest = Manifest::parse(bytes.as_bytes(), members.store().limits())?;
    parsed.check(&manifest)?;
    let digest = finish(members, &manifest, bytes.as_bytes(), Digest::of(bytes.as_bytes()), &references)?;
    Ok(Loaded { references, manifest: digest })
}

fn finish(
    members: &mut Members<'_>,
    manifest: &Manifest,
    bytes: &[u8],
    source: Digest,
    references: &[Reference],
) -> Result<Digest, LoadError> {
    let (store, digest) = (members.store(), Digest::of(bytes));
    let held: Vec<_> = manifest.blobs().iter().map(|blob| blob.digest).chain([digest]).collect();
    let hold = store.hold(&held)?;
    members.publish(&hold, &manifest.blobs())?;
    store.write_document(&hold, bytes)?;
    for reference in references {
        store.set_tag(reference, digest, source)?;
    }
    Ok(digest)
}

fn verified(members: &mut Members<'_>, blob: Blob) -> Result<Vec<u8>, LoadError> {
    let bytes = members.document(&path(blob.digest), MAX_MANIFEST)?;
    let bytes = bytes.ok_or_else(|| LoadError::Malformed(format!("{} is missing", blob.digest)))?;
    check(blob, Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 })?;
    Ok(bytes)
}

fn check(expected: Blob, actual: Blob) -> Result<(), LoadError> {
    if expected.digest != actual.digest {
        return Err(StoreError::WrongDigest { expected: expected.digest, actual: actual.digest }.into());
    }
    if expected.size != actual.size {
        let (digest, expected, actual) = (expected.digest, expected.size, actual.size);
        return Err(StoreError::WrongSize { digest, expected, actual }.into());
    }
    Ok(())
}

fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn malformed(error: serde_json::Error) -> LoadError {
    LoadError::Malformed(printable(&error.to_string()))
}
