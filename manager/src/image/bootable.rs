//! Makes the disk of an image, and lists its names. The layer process writes a disk to an unfinished file of
//! the store, which gives it its name when it is complete and on disk.

use super::{
    error::{ImageError, UnpackFailure},
    store::ImageStore,
};
use crate::{home::content, image_defaults::ImageDefaults};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandboxvm_layers::{
    Format, Limits,
    process::{Event, LayerSource, Product, Unpacker},
};
use sandboxvm_oci::{
    Digest, ImageDetails,
    config::ImageConfig,
    manifest::Compression,
    store::{Hold, Store, StoreError},
};
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The kind of disk in the store, the end of its name.
const KIND: &str = "erofs";
/// Maximum size in bytes of the names of directories that are requested of the layer process, whose
/// request is limited.
const MAX_DIRECTORIES: usize = 16 << 10;
/// The kind of disk of an image with volumes. Earlier versions made disks without their directories.
const KIND_WITH_VOLUMES: &str = "erofs-volumes";
/// Interval at which a thread that waits for the layer process checks whether it was cancelled.
const CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Time without a report after which the layer process is ended. It reports each MiB; what it does at the
/// end, writing the metadata of the largest image that is accepted, takes seconds.
const SILENCE: Duration = Duration::from_secs(300);

/// An image with a disk that a machine can boot from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BootableImage {
    /// The EROFS file system of all layers, for [`Bundle::image`](sandboxvm_images::bundle::Bundle).
    pub disk: PathBuf,
    /// What the image says about processes, for [`SandboxSpec::image_defaults`](crate::SandboxSpec).
    pub defaults: ImageDefaults,
    /// Its environment; see [`over_environment_of_image`](super::over_environment_of_image).
    pub env: Vec<String>,
    /// Everything that the image says.
    pub config: ImageConfig,
    /// Keeps the image and its disk from removal. It has to live until the sandbox is created.
    pub hold: Hold,
}

/// How far the layers of an image have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackProgress {
    /// Bytes of all layers that were read, as they are stored.
    pub read: u64,
    /// Bytes of all layers, as they are stored.
    pub total: u64,
}

impl ImageStore {
    /// Returns an image of the home, by reference or by the digest of its manifest, ready to boot. Its disk
    /// is made first if it does not exist. Cancel safe: the layer process ends within 100 ms.
    ///
    /// # Errors
    /// When the home does not have the image, when a layer is invalid, or when the disk cannot be written.
    pub async fn bootable(
        &self,
        image: &str,
        progress: impl FnMut(UnpackProgress) + Send + 'static,
    ) -> Result<BootableImage, ImageError> {
        let unpacker = self.unpacker()?;
        let (this, image) = (self.clone(), image.to_owned());
        on_a_thread(move |cancelled| this.make(&image, &unpacker, cancelled, progress)).await
    }

    /// Like [`Self::bootable`], without progress. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::bootable`].
    pub fn bootable_now(&self, image: &str) -> Result<BootableImage, ImageError> {
        self.make(image, &self.unpacker()?, &AtomicBool::new(false), |_| ())
    }

    /// Writes the names of an image of the home to an empty file: a tar archive of directories and symbolic
    /// links with their metadata, and of other files without content. The archive is hostile. Cancel safe: the
    /// layer process ends within 100 ms.
    ///
    /// # Errors
    /// When the home does not have the image, when a layer is invalid, or when the file cannot be written.
    pub async fn list_names(&self, image: &str, list: File) -> Result<(), ImageError> {
        let unpacker = self.unpacker()?;
        let (this, image) = (self.clone(), image.to_owned());
        on_a_thread(move |cancelled| {
            let (details, store) = (this.images.inspect(&image)?, this.images.store());
            let read = read(store, &details, Product::List, &unpacker, &list, cancelled, |_| ());
            read.map_err(|source| StoreError::Disk { manifest: details.manifest, source: source.into() }.into())
        })
        .await
    }

    fn make(
        &self,
        image: &str,
        unpacker: &Unpacker,
        cancelled: &AtomicBool,
        progress: impl FnMut(UnpackProgress),
    ) -> Result<BootableImage, ImageError> {
        let details = self.images.inspect(image)?;
        let store = self.images.store();
        let kind = if details.configuration.image.volumes.is_empty() { KIND } else { KIND_WITH_VOLUMES };
        let (disk, hold) = store
            .disk(details.manifest, kind, |path| Ok(write(store, &details, unpacker, path, cancelled, progress)?))?;
        // Reading the file once for its hash here keeps that out of the first start.
        content::at(&self.manager.home, &disk)?;
        Ok(bootable(image, details.manifest, disk, hold, details.configuration.image))
    }
}

/// Runs work that starts a layer process, and tells it when the caller was cancelled.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _cancel = CancelOnDrop(cancelled.clone());
    // The kernel ends the layer process together with the thread that started it, and threads of the
    // runtime may end when they are idle. This one waits for its result.
    let (sender, result) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("image".to_owned());
    let spawned = thread.spawn(move || {
        // If the caller was cancelled, no task waits for this.
        let _ = sender.send(work(&cancelled));
    });
    spawned.map_err(ImageError::Thread)?;
    result.await.map_err(|error| ImageError::Thread(io::Error::other(error)))?
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes the disk of an image to the empty file at `path`.
fn write(
    store: &Store,
    image: &ImageDetails,
    unpacker: &Unpacker,
    path: &Path,
    cancelled: &AtomicBool,
    progress: impl FnMut(UnpackProgress),
) -> Result<(), UnpackFailure> {
    let disk = OpenOptions::new().read(true).write(true).open(path)?;
    read(store, image, Product::Image, unpacker, &disk, cancelled, progress)?;
    Ok(disk.sync_all()?)
}

/// Returns the working directory and the volumes of an image, which are made where no layer has them.
fn directories(config: &ImageConfig) -> Result<Vec<Vec<u8>>, UnpackFailure> {
    let paths = [&config.working_dir].into_iter().chain(&config.volumes).filter(|path| !path.is_empty());
    let directories: Vec<Vec<u8>> = paths.map(|path| path.clone().into_bytes()).collect();
    // A volume that is left out would be a part of the image without a word.
    if directories.iter().map(|path| path.len() + 8).sum::<usize>() > MAX_DIRECTORIES {
        return Err(UnpackFailure::Directories(MAX_DIRECTORIES >> 10));
    }
    Ok(directories)
}

/// Lets the layer process read the layers of an image, and write its product to an empty file.
fn read(
    store: &Store,
    image: &ImageDetails,
    product: Product,
    unpacker: &Unpacker,
    target: &File,
    cancelled: &AtomicBool,
    mut progress: impl FnMut(UnpackProgress),
) -> Result<(), UnpackFailure> {
    let files = image.layers.iter().map(|layer| store.open_blob(layer.digest));
    let files = files.collect::<Result<Vec<File>, _>>().map_err(io::Error::other)?;
    let layers: Vec<(LayerSource, BorrowedFd<'_>)> = image
        .layers
        .iter()
        .zip(&image.configuration.diff_ids)
        .zip(&files)
        .map(|((layer, diff_id), file)| {
            let format = match layer.compression {
                Compression::None => Format::Tar,
                Compression::Gzip => Format::Gzip,
                Compression::Zstd => Format::Zstd,
            };
            (LayerSource { format: Some(format), diff_id: Some(diff_id.bytes()) }, file.as_fd())
        })
        .collect();
    let directories = directories(&image.configuration.image)?;
    let mut unpacking = unpacker.start(product, &layers, &directories, target.as_fd(), &Limits::default())?;
    let sizes: Vec<u64> = image.layers.iter().map(|layer| layer.size).collect();
    let total = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(*size));
    let mut heard = Instant::now();
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(UnpackFailure::Cancelled);
        }
        let is_ready = match poll(&mut [PollFd::new(&unpacking, PollFlags::IN)], Some(&CHECK)) {
            Ok(count) => count > 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        if !is_ready {
            if heard.elapsed() > SILENCE {
                return Err(UnpackFailure::Silent(SILENCE.as_secs()));
            }
            continue;
        }
        heard = Instant::now();
        match unpacking.next_event()? {
            // `doctor` names what a host lacks.
            Event::Confined(_) => {}
            Event::Progress(made) => {
                let before = sizes.iter().take(made.layer.into()).fold(0_u64, |sum, size| sum.saturating_add(*size));
                progress(UnpackProgress { read: before.saturating_add(made.read).min(total), total });
            }
            Event::Finished(_) => return Ok(()),
            Event::Failed(failure) => return Err(sandboxvm_layers::process::ProcessError::from(failure).into()),
        }
    }
}

fn bootable(reference: &str, digest: Digest, disk: PathBuf, hold: Hold, config: ImageConfig) -> BootableImage {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let defaults = ImageDefaults {
        reference: reference.to_owned(),
        digest: digest.to_string(),
        user: text(&config.user),
        working_directory: text(&config.working_dir),
        entrypoint: config.entrypoint.clone(),
        command: config.cmd.clone(),
        stop_signal: text(&config.stop_signal),
    };
    BootableImage { disk, defaults, env: config.env.clone(), config, hold }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_too_many_volumes_is_refused() {
        let config = |count: usize| ImageConfig {
            working_dir: "/work".into(),
            volumes: (0..count).map(|at| format!("/volumes/{at:05}")).collect(),
            ..ImageConfig::default()
        };
        assert_eq!(directories(&config(700)).unwrap().len(), 701);
        let error = directories(&config(800)).unwrap_err().to_string();
        assert!(error.contains("more than 16 KiB"), "{error}");
        assert!(directories(&ImageConfig::default()).unwrap().is_empty());
    }
}
