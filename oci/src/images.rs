//! The images of a store by reference: pull, push, list, inspect, tag, remove. Documents that come
//! from a source are checked here before a blob that they name is transferred.

use crate::{
    config::{ConfigError, Configuration},
    digest::Digest,
    limits::{Limits, MAX_CONFIG, MAX_MANIFEST},
    manifest::{Blob, Document, Layer, Manifest, ManifestError},
    progress::{Event, Progress},
    reference::{Reference, ReferenceError},
    registry::{Client, Credentials, Login, RegistryError, RegistryOptions, Source},
    sources::{LoadError, Loaded, Members, Names, SaveError, load, request, save},
    store::{Collected, Hold, Store, StoreError, Tag},
};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Minimum number of digits of a short ID: fewer are more often a name.
const MIN_ID: usize = 4;

/// A failed operation on images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest is not accepted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A configuration is not accepted.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An archive or layout is not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An archive is not written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The store has no image of this reference.
    #[error("the store has no image {0:?}")]
    NotFound(String),
    /// An image has several references, so its digest does not say which one to remove.
    #[error("{digest} has several references: {}", .references.join(", "))]
    SeveralReferences {
        /// Digest of the manifest.
        digest: Digest,
        /// The references, sorted.
        references: Vec<String>,
    },
    /// Several images have an ID that begins so.
    #[error("several images have an ID that begins with {0:?}")]
    AmbiguousId(String),
    /// A reference for a new tag has a digest.
    #[error("invalid tag {0:?}: expected a reference without a digest")]
    Digest(String),
}

type Result<T> = std::result::Result<T, Error>;

/// Options of a pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Credentials for the registry of the reference. No mirror receives them. `None`: those that
    /// [`RegistryOptions::credentials`] has for it.
    pub credentials: Option<Credentials>,
}

/// Options of a push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Credentials for the registry of the reference. `None`: those that
    /// [`RegistryOptions::credentials`] has for it.
    pub credentials: Option<Credentials>,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The complete reference.
    pub reference: Reference,
    /// Digest of the manifest.
    pub manifest: Digest,
}

/// An image in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// The reference and what it leads to.
    pub tag: Tag,
    /// Size in bytes of the layers as they are stored.
    pub size: u64,
}

/// An image in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDetails {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the configuration, which docker calls the ID of the image.
    pub config_digest: Digest,
    /// Configuration.
    pub configuration: Configuration,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
}

/// A store of images and the registries that it exchanges images with.
#[derive(Debug, Clone)]
pub struct Images {
    store: Store,
    registries: Arc<RegistryOptions>,
}

impl Images {
    /// Opens the store at `root`, creating it if it does not exist.
    ///
    /// # Errors
    /// Fails if the store cannot be created or has another format.
    pub fn open(root: impl Into<PathBuf>, limits: Limits, registries: RegistryOptions) -> Result<Self> {
        Ok(Self { store: Store::open(root, limits)?, registries: Arc::new(registries) })
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Parses a reference. A name without a registry belongs to the default registry.
    ///
    /// # Errors
    /// Fails if the text is not a reference.
    pub fn reference(&self, text: &str) -> Result<Reference> {
        Ok(Reference::parse(text, self.registries.default_registry.as_deref())?)
    }

    /// Pulls an image for x86-64 Linux and tags it with its reference. Blobs that the store has are
    /// not transferred again. A pull that is dropped or killed can be repeated, and continues.
    ///
    /// # Errors
    /// Fails if no registry or mirror has the image, if the image is not accepted, or if the store
    /// fails. The tag is unchanged then.
    pub async fn pull(&self, text: &str, options: PullOptions, progress: Arc<dyn Progress>) -> Result<Pulled> {
        let reference = self.reference(text)?;
        let total = self.registries.total;
        let pulling = self.pull_reference(reference, options, progress);
        timeout(total, pulling).await.unwrap_or_else(|_| Err(RegistryError::Deadline(total).into()))
    }

    async fn pull_reference(
        &self,
        reference: Reference,
        options: PullOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Pulled> {
        let source = self.source(&reference, options.credentials)?;
        let top = source.manifest(&reference.wanted()).await?;
        let (top_digest, mut fetched) = (top.digest, top);
        let manifest = match Document::parse(&fetched.bytes, self.store.limits())? {
            Document::Image(manifest) => manifest,
            Document::Index(chosen) => {
                fetched = source.manifest(&chosen.digest.to_string()).await?;
                Manifest::parse(&fetched.bytes, self.store.limits())?
            }
        };
        let (hold, fetched, manifest) =
            self.blocking(move |images| Ok((images.hold(fetched.digest, &manifest)?, fetched, manifest))).await?;
        let blobs = manifest.blobs();
        let bytes = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        progress.notify(Event::Resolved { digest: fetched.digest, blobs: blobs.len(), bytes });
        // The configuration first: an image that is not accepted costs no transfer of layers.
        source.blob(manifest.config_blob(), &self.store, &hold, &*progress).await?;
        self.configuration(&manifest)?.check(&manifest)?;
        self.layers(&source, &blobs[1..], &hold, &progress).await?;
        self.blocking(move |images| {
            images.store.write_document(&hold, &fetched.bytes)?;
            images.store.set_tag(&reference, fetched.digest, top_digest)?;
            Ok(Pulled { reference, manifest: fetched.digest })
        })
        .await
    }

    /// Loads the images of a tar archive, as `docker save` or OCI tools write it, plain or with gzip.
    /// `name` replaces the name in an archive of one image. A name in an archive that states no registry
    /// belongs to the default registry, as where a user states it. Blocks the thread.
    ///
    /// # Errors
    /// Fails if the archive cannot be read, if an image is not accepted, or if the store fails.
    pub fn load(&self, input: impl Read, name: Option<&Reference>) -> Result<Vec<Loaded>> {
        Ok(load(Members::of_archive(&self.store, input)?, self.names(name))?)
    }

    /// Loads the images of an OCI layout directory. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_layout(&self, directory: &Path, name: Option<&Reference>) -> Result<Vec<Loaded>> {
        Ok(load(Members::of_directory(&self.store, directory)?, self.names(name))?)
    }

    /// Loads an image from docker's daemon, by its API at `socket`. The daemon is asked for `wanted`, and the
    /// image receives `name`.
    ///
    /// # Errors
    /// Fails if the daemon cannot be reached, does not have the image or sends nothing for two minutes,
    /// or as [`Self::load`].
    pub async fn load_daemon(&self, socket: &Path, wanted: &Reference, name: &Reference) -> Result<Vec<Loaded>> {
        let archive = Box::pin(request(socket, wanted).await?);
        let name = name.clone();
        let input = SyncIoBridge::new(StreamReader::new(archive));
        self.blocking(move |images| images.load(input, Some(&name))).await
    }

    /// Writes an image as a tar archive that docker and OCI tools read, under its reference. Blocks
    /// the thread.
    ///
    /// # Errors
    /// Fails if the store does not have the image, or if the output fails.
    pub fn save(&self, image: &str, output: impl Write) -> Result<()> {
        let name = self.reference(image)?;
        if name.digest().is_some() {
            return Err(Error::Digest(image.to_owned()));
        }
        Ok(save(&self.store, self.find(image)?, &name.to_string(), output)?)
    }

    /// Pushes an image of the store to the registry of `to`, under its tag.
    ///
    /// # Errors
    /// Fails if the store does not have the image, or if the registry does not accept it.
    pub async fn push(&self, from: &str, to: &str, options: PushOptions, progress: Arc<dyn Progress>) -> Result<()> {
        let (digest, to, total) = (self.find(from)?, self.reference(to)?, self.registries.total);
        let pushing = self.push_manifest(digest, &to, options, progress);
        timeout(total, pushing).await.unwrap_or_else(|_| Err(RegistryError::Deadline(total).into()))
    }

    async fn push_manifest(
        &self,
        digest: Digest,
        to: &Reference,
        options: PushOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<()> {
        let tag = to.tag().filter(|_| to.digest().is_none()).ok_or_else(|| Error::Digest(to.to_string()))?;
        let bytes = self.store.read_document(digest, MAX_MANIFEST)?;
        let manifest = Manifest::parse(&bytes, self.store.limits())?;
        let (_hold, manifest) = self.blocking(move |images| Ok((images.hold(digest, &manifest)?, manifest))).await?;
        let client = Client::new(self.registries.clone(), to.host(), None, login(to, options.credentials))?;
        for blob in manifest.blobs() {
            client.upload(to.repository(), blob, &self.store, progress.clone()).await?;
        }
        Ok(client.put_manifest(to.repository(), tag, manifest.media_type(), bytes).await?)
    }

    /// Checks credentials with a registry.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached or rejects them.
    pub async fn check_credentials(&self, host: &str, credentials: Credentials) -> Result<()> {
        Ok(Client::new(self.registries.clone(), host, None, Login::Given(credentials))?.check().await?)
    }

    /// Returns all tagged images, sorted by reference.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        let summary = |tag: Tag| {
            let size = self.manifest(tag.manifest)?.size();
            Ok(ImageSummary { tag, size })
        };
        self.store.tags()?.into_iter().map(summary).collect()
    }

    /// Returns the details of an image, by reference or digest of its manifest. The digest may be
    /// that of an image without a tag, which the caller keeps.
    ///
    /// # Errors
    /// Fails if the store does not have the image.
    pub fn inspect(&self, image: &str) -> Result<ImageDetails> {
        let digest = self.digest_of(image)?;
        let manifest = self.manifest(digest)?;
        let configuration = self.configuration(&manifest)?;
        let layers = manifest.layers().to_vec();
        Ok(ImageDetails { manifest: digest, config_digest: manifest.config(), configuration, layers })
    }

    /// Returns the digest of the manifest of the tagged image whose ID begins with `text`, if no tag is `text`
    /// itself. An ID is the digest of a manifest or, as docker has it, of a configuration; `text` has 4 to 64 of
    /// its digits, after an optional `sha256:`. A caller that answers others than the owner of the store must not
    /// use this: a short ID can be guessed.
    ///
    /// # Errors
    /// Fails if several images have such an ID, or if the store cannot be read.
    pub fn by_short_id(&self, text: &str) -> Result<Option<Digest>> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !(MIN_ID..=64).contains(&digits.len()) || !digits.bytes().all(is_digit) {
            return Ok(None);
        }
        let tags = self.store.tags()?;
        let reference = self.reference(text).ok().map(|reference| reference.to_string());
        if tags.iter().any(|tag| Some(&tag.reference) == reference.as_ref()) {
            return Ok(None);
        }
        let mut found = BTreeSet::new();
        for manifest in tags.into_iter().map(|tag| tag.manifest).collect::<BTreeSet<_>>() {
            let is_it = |digest: &Digest| digest.hex().starts_with(digits);
            // An image that is damaged has no other ID than that of its manifest.
            if is_it(&manifest) || self.manifest(manifest).is_ok_and(|read| is_it(&read.config())) {
                found.insert(manifest);
            }
        }
        if found.len() > 1 {
            return Err(Error::AmbiguousId(text.to_owned()));
        }
        Ok(found.pop_first())
    }

    /// Gives an image another reference.
    ///
    /// # Errors
    /// Fails if the store does not have the image, or if the reference has a digest.
    pub fn tag(&self, image: &str, reference: &str) -> Result<()> {
        let reference = self.new_tag(reference)?;
        let _hold = self.store.hold(&[self.find(image)?])?;
        let digest = self.find(image)?;
        Ok(self.store.set_tag(&reference, digest, digest)?)
    }

    /// Removes a reference, or the reference of an image if the digest of its manifest is given, then
    /// the blobs that no image needs. `keep` are digests of manifests whose images stay.
    ///
    /// # Errors
    /// Fails if the store does not have the image, or if a file cannot be deleted. Fails with
    /// [`Error::SeveralReferences`], and removes nothing, if the digest has several references: as with
    /// docker, each of them is removed by its name.
    pub fn remove(&self, image: &str, keep: &[Digest]) -> Result<(Vec<Tag>, Collected)> {
        let removed = self.untag(image)?;
        Ok((removed, self.store.collect(keep)?))
    }

    /// Removes a reference as [`Self::remove`] does, and deletes nothing.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn untag(&self, image: &str) -> Result<Vec<Tag>> {
        let removed = match image.parse::<Digest>() {
            Ok(digest) => self.store.remove_only_tag(digest)?.map_err(|tags| Error::SeveralReferences {
                digest,
                references: tags.into_iter().map(|tag| tag.reference).collect(),
            })?,
            Err(_) => {
                let reference = self.reference(image)?.to_string();
                self.store.remove_tags(|tag| tag.reference == reference)?
            }
        };
        if removed.is_empty() {
            return Err(Error::NotFound(image.to_owned()));
        }
        Ok(removed)
    }

    /// Deletes blobs and disks that no image needs, and downloads that no process continues.
    ///
    /// # Errors
    /// Fails if a file cannot be read or deleted.
    pub fn prune(&self, keep: &[Digest]) -> Result<Collected> {
        let (blobs, partial) = (self.store.collect(keep)?, self.store.collect_partial()?);
        Ok(Collected { files: blobs.files + partial.files, bytes: blobs.bytes.saturating_add(partial.bytes) })
    }

    /// Parses a reference for a tag.
    pub(crate) fn new_tag(&self, text: &str) -> Result<Reference> {
        let reference = self.reference(text)?;
        if reference.digest().is_some() { Err(Error::Digest(reference.to_string())) } else { Ok(reference) }
    }

    /// Like [`Self::find`], and accepts the digest of an image without a tag, which a caller keeps.
    pub(crate) fn digest_of(&self, image: &str) -> Result<Digest> {
        image.parse().map_or_else(|_| self.find(image), Ok)
    }

    /// Returns the digest of the manifest of an image, by reference or by that digest.
    fn find(&self, image: &str) -> Result<Digest> {
        let by_digest = image.parse::<Digest>().ok();
        let reference = if by_digest.is_none() { Some(self.reference(image)?) } else { None };
        let is_it = |tag: &Tag| match &reference {
            Some(reference) => tag.reference == reference.to_string(),
            None => Some(tag.manifest) == by_digest,
        };
        let found = self.store.tags()?.into_iter().find(is_it);
        found.map(|tag| tag.manifest).ok_or_else(|| Error::NotFound(image.to_owned()))
    }

    fn names<'a>(&'a self, given: Option<&'a Reference>) -> Names<'a> {
        Names { given, registry: self.registries.default_registry.as_deref() }
    }

    fn source(&self, reference: &Reference, credentials: Option<Credentials>) -> Result<Source> {
        let mirrors = self.registries.mirrors.get(reference.registry()).into_iter().flatten();
        let mirror = |host: &String| {
            let (namespace, login) = (reference.registry().to_owned(), Login::Find(host.clone()));
            Client::new(self.registries.clone(), host, Some(namespace), login)
        };
        let mut clients = mirrors.map(mirror).collect::<std::result::Result<Vec<_>, _>>()?;
        clients.push(Client::new(self.registries.clone(), reference.host(), None, login(reference, credentials))?);
        Ok(Source {
            clients: clients.into_iter().map(Arc::new).collect(),
            repository: reference.repository().to_owned(),
        })
    }

    fn hold(&self, digest: Digest, manifest: &Manifest) -> Result<Hold> {
        let digests: Vec<_> = manifest.blobs().iter().map(|blob| blob.digest).chain([digest]).collect();
        Ok(self.store.hold(&digests)?)
    }

    /// Does work that waits for the lock of the store, which another process may have, or for the
    /// disk.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> Result<T> + Send + 'static) -> Result<T> {
        let images = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&images)).await;
        done.map_err(|_| StoreError::Cancelled)?
    }

    /// Downloads layers, several at a time. The first failure ends the others.
    async fn layers(&self, source: &Source, blobs: &[Blob], hold: &Hold, progress: &Arc<dyn Progress>) -> Result<()> {
        let turns = Arc::new(Semaphore::new(self.registries.at_a_time.clamp(1, 16)));
        let mut tasks = JoinSet::new();
        for blob in blobs.iter().copied() {
            let (source, store, hold) = (source.clone(), self.store.clone(), hold.clone());
            let (progress, turns) = (progress.clone(), turns.clone());
            tasks.spawn(async move {
                let _turn = turns.acquire().await;
                source.blob(blob, &store, &hold, &*progress).await
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|_| StoreError::Cancelled)??;
        }
        Ok(())
    }

    fn manifest(&self, digest: Digest) -> Result<Manifest> {
        Ok(Manifest::parse(&self.store.read_document(digest, MAX_MANIFEST)?, self.store.limits())?)
    }

    fn configuration(&self, manifest: &Manifest) -> Result<Configuration> {
        Ok(Configuration::parse(&self.store.read_document(manifest.config(), MAX_CONFIG)?)?)
    }
}

fn login(reference: &Reference, given: Option<Credentials>) -> Login {
    given.map_or_else(|| Login::Find(reference.registry().to_owned()), Login::Given)
}
