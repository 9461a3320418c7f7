//! A running sandbox's disk as an image: the layers of its image, and its changes as one layer on
//! top. The changes are hostile bytes, which pass from the guest into the store without being read
//! as an archive. May not stop or change the sandbox.

use super::store::ImageStore;
use crate::{
    guest::files::{DiskChanges, FileError},
    sandbox::Sandbox,
};
use futures_util::future::BoxFuture;
use sandboxvm_oci::{Addition, ComposeError, Composition, Digest, config::ImageConfig};
use std::{
    io::{self, Read},
    time::SystemTime,
};
use tokio::sync::mpsc;

/// Number of chunks of at most 64 KiB between the guest and the thread that compresses them.
const CHUNKS: usize = 8;

/// Why no image was made. The tag is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The sandbox was started from a file system, or by an earlier version.
    #[error("sandbox {0} was not started from a container image")]
    NoImage(String),
    /// The guest failed, or its changes exceed the limit.
    #[error(transparent)]
    Changes(#[from] FileError),
    /// The image cannot be stored.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// A thread was ended.
    #[error("cannot compress the layer: {0}")]
    Thread(#[source] io::Error),
}

impl From<sandboxvm_oci::Error> for CommitError {
    fn from(error: sandboxvm_oci::Error) -> Self {
        Self::Compose(Box::new(error).into())
    }
}

/// What a commit makes.
#[derive(Debug, Clone)]
pub struct CommitSpec {
    /// The reference that the image receives. Without one, the image is garbage unless a sandbox
    /// or snapshot is made from it.
    pub tag: Option<String>,
    /// Configuration of the image. `None`: that of the sandbox's image.
    pub config: Option<ImageConfig>,
    /// Lines of the history before the layer, which added no layer.
    pub settings: Vec<String>,
    /// What made the layer, for the history.
    pub created_by: String,
    /// When the image was made, in seconds since the Unix epoch. `None`: now.
    pub created: Option<u64>,
    /// Maximum size in bytes of the layer, not compressed.
    pub max_bytes: u64,
}

impl Default for CommitSpec {
    /// Returns a commit without a tag, of at most 16 GiB.
    fn default() -> Self {
        Self {
            tag: None,
            config: None,
            settings: Vec::new(),
            created_by: "sandboxvm commit".into(),
            created: None,
            max_bytes: 16 << 30,
        }
    }
}

impl CommitSpec {
    /// Returns when the image was made, as RFC 3339 writes it.
    #[must_use]
    pub fn created_text(&self) -> String {
        let time = self.created.map_or_else(SystemTime::now, |seconds| {
            SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(253_402_300_799))
        });
        humantime::format_rfc3339_seconds(time).to_string()
    }
}

impl ImageStore {
    /// Stores everything in which the disk of a running sandbox differs from its image, as a layer
    /// on top of that image, and returns the digest of the new image's manifest. As with
    /// [`Sandbox::disk_changes`], processes keep running meanwhile. A call that
    /// is cancelled sets the tag only if the layer had arrived completely.
    ///
    /// # Errors
    /// Every [`CommitError`].
    pub fn commit<'a>(
        &'a self,
        sandbox: &'a Sandbox,
        spec: &'a CommitSpec,
    ) -> BoxFuture<'a, Result<Digest, CommitError>> {
        Box::pin(async move {
            let Some(defaults) = &sandbox.record.image_defaults else {
                return Err(CommitError::NoImage(sandbox.label()));
            };
            let base = defaults.digest.clone();
            let config = match &spec.config {
                Some(config) => config.clone(),
                None => self.images.inspect(&base)?.configuration.image,
            };
            let mut changes = sandbox.disk_changes(spec.max_bytes).await?;
            let (sender, receiver) = mpsc::channel(CHUNKS);
            let (images, spec, created) = (self.images.clone(), spec.clone(), spec.created_text());
            let composing = tokio::task::spawn_blocking(move || {
                let composition = Composition { base: Some(&base), config, created, tag: spec.tag.as_deref() };
                let settings = spec.settings.into_iter().map(|created_by| Addition::Setting { created_by });
                let archive = Layer { receiver, chunk: Vec::new(), at: 0, is_whole: false };
                let layer = Addition::Layer { archive, created_by: spec.created_by };
                images.compose(&composition, settings.chain([layer]))
            });
            let sent = send(&mut changes, sender).await;
            let composed = composing.await.map_err(|error| CommitError::Thread(io::Error::other(error)))?;
            // If the guest failed, the thread only knows that the layer has no end.
            sent?;
            Ok(composed?)
        })
    }
}

/// Hands on the layer as it arrives. Its end is a message: a sender that was dropped before is not an
/// end.
async fn send(changes: &mut DiskChanges<'_>, sender: mpsc::Sender<Option<Vec<u8>>>) -> Result<(), FileError> {
    loop {
        let chunk = changes.next().await?;
        let is_end = chunk.is_none();
        // The thread stops reading when it fails, and returns why.
        if sender.send(chunk).await.is_err() || is_end {
            return Ok(());
        }
    }
}

/// The layer, for a thread that blocks.
struct Layer {
    receiver: mpsc::Receiver<Option<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    is_whole: bool,
}

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            if self.is_whole {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Some(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Some(None) => self.is_whole = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer ended early")),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_without_its_end_is_an_error() {
        let layer = |messages: Vec<Option<Vec<u8>>>| {
            let (sender, receiver) = mpsc::channel(8);
            messages.into_iter().for_each(|message| sender.try_send(message).unwrap());
            drop(sender);
            let mut bytes = Vec::new();
            let read = Layer { receiver, chunk: Vec::new(), at: 0, is_whole: false }.read_to_end(&mut bytes);
            read.map(|_| bytes)
        };
        assert_eq!(layer(vec![Some(b"ab".to_vec()), Some(Vec::new()), Some(b"c".to_vec()), None]).unwrap(), b"abc");
        assert_eq!(layer(vec![Some(b"ab".to_vec())]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(layer(vec![None]).unwrap(), b"");
    }

    #[test]
    fn created_is_written_as_in_images_of_others() {
        let at = |created| CommitSpec { created, ..CommitSpec::default() }.created_text();
        assert_eq!(at(Some(0)), "1970-01-01T00:00:00Z");
        assert_eq!(at(Some(u64::MAX)), "9999-12-31T23:59:59Z");
        assert!(at(None).starts_with("20"));
    }
}
