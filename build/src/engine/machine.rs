//! What the engine needs of the machines that execute steps: two traits, which another module
//! implements with sandboxes, and tests with a recorder. May not know how a machine works.

use crate::key::Key;
use sandboxvm_archive::Timestamp;
use sandboxvm_oci::{Digest, config::ImageConfig};
use std::{
    error::Error,
    fs::File,
    future::Future,
    io::{self, Read},
};

/// A failure of a machine or of the image store.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MachineError(Box<dyn Error + Send + Sync>);

impl MachineError {
    /// Wraps an error, or a text.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// The result of a machine.
pub type Done<T> = Result<T, MachineError>;

/// An image that a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// Digest of its manifest. It is part of the keys.
    pub digest: String,
    /// Its configuration.
    pub config: ImageConfig,
}

/// A process of a `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment, as `NAME=value`.
    pub env: Vec<String>,
    /// User, empty for root.
    pub user: String,
    /// Directory in which it starts.
    pub workdir: String,
    /// Whether it has no network.
    pub no_network: bool,
}

/// An output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A file that was downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downloaded {
    /// Size in bytes.
    pub size: u64,
    /// Digest of the content.
    pub digest: Digest,
    /// When it was changed last, or the Unix epoch.
    pub modified: Timestamp,
}

/// What a step finds at a path that is mounted for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounted<'a> {
    /// Another file or directory of the machine.
    Bind {
        /// Its path.
        source: &'a str,
        /// Whether it can be written to.
        writable: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Maximum size in bytes. `None`: half of the memory.
        size: Option<u64>,
    },
}

/// What a path of a machine is, after symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A directory.
    Directory,
    /// Any other file.
    File,
}

/// User ID and group ID.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// The files that steps copy to, and what decides how they are copied.
pub trait Disk: Send + Sync {
    /// Returns what a path is, or `None` if there is nothing.
    fn find(&mut self, path: &str) -> impl Future<Output = Done<Option<Found>>> + Send;

    /// Reads a small file, or returns `None` if there is none. More than `maximum` bytes are an
    /// error.
    fn read(&mut self, path: &str, maximum: usize) -> impl Future<Output = Done<Option<Vec<u8>>>> + Send;

    /// Makes a directory and those above it, with mode 0755. Existing ones are unchanged; new ones
    /// receive the owner.
    fn make_directory(&mut self, path: &str, owner: Owner) -> impl Future<Output = Done<()>> + Send;

    /// Extracts a tar archive at the root, with the owners that it states. What is mounted over files of
    /// the disk is passed by: the image gets what the archive states.
    fn extract_to_disk(&mut self, archive: File) -> impl Future<Output = Done<()>> + Send;
}

/// A machine in which steps are executed. Dropping it ends it, and nothing of it remains but what
/// was saved.
pub trait Machine: Disk {
    /// Runs a process, passes on its output and returns its exit code, as a shell reports it.
    fn run(
        &mut self,
        process: &Process,
        output: &mut (dyn FnMut(Stream, &[u8]) + Send),
    ) -> impl Future<Output = Done<u8>> + Send;

    /// Ends all processes that steps left behind.
    fn end_processes(&mut self) -> impl Future<Output = Done<()>> + Send;

    /// As [`Disk::extract_to_disk`], but through what is mounted, so that processes see the files.
    fn extract(&mut self, archive: &mut (dyn Read + Send)) -> impl Future<Output = Done<()>> + Send;

    /// Writes a file or tree to `output` as a tar archive, in which it is called `x`. A symbolic
    /// link at `path` is followed. Returns false if there is nothing at `path`.
    fn archive(&mut self, path: &str, output: &mut File) -> impl Future<Output = Done<bool>> + Send;

    /// Mounts something at a path that exists.
    fn mount(&mut self, target: &str, what: Mounted<'_>) -> impl Future<Output = Done<()>> + Send;

    /// Undoes [`Self::mount`], also if processes of the machine mounted more there or undid it.
    fn unmount(&mut self, target: &str) -> impl Future<Output = Done<()>> + Send;

    /// Removes a file or tree, if there is one.
    fn remove(&mut self, path: &str) -> impl Future<Output = Done<()>> + Send;

    /// Keeps the state of the machine under this key. Returns false if it was not kept, which is
    /// not a failure of the build.
    fn save(&mut self, key: Key) -> impl Future<Output = Done<bool>> + Send;

    /// Ends the machine.
    fn finish(self) -> impl Future<Output = Done<()>> + Send;
}

/// The layer of a step that was executed without a machine.
#[derive(Debug)]
pub struct StepLayer {
    /// Key of the state after the step.
    pub key: Key,
    /// What the history says: the instruction.
    pub created_by: String,
    /// The layer as a plain tar archive. `None`: the one that is known under the key.
    pub archive: Option<File>,
}

/// The image that a build makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// The image that the first step begins with. Without a machine, it has the layers of the steps that were
    /// executed without one.
    pub base: BaseImage,
    /// Key of the state of the disk. `None`: nothing changed above `base`, so there is no further layer.
    pub key: Option<Key>,
    /// Key of the last [`StepLayer`], if nothing is above it. An image that is built again has the time of
    /// that layer, and so the same digest.
    pub last_step: Option<Key>,
    /// Configuration.
    pub config: ImageConfig,
    /// What the history says: one line for each instruction whose step has no separate layer.
    pub history: Vec<String>,
    /// The reference that the image receives.
    pub tag: Option<String>,
    /// When the image was made, in seconds since the Unix epoch. `None`: now.
    pub created: Option<u64>,
}

/// Where machines come from, and where images are.
pub trait Machines: Sync {
    /// A machine.
    type Machine: Machine;

    /// Returns an image by reference, which is pulled if it is absent. `None`: an empty image.
    fn image(&self, reference: Option<&str>) -> impl Future<Output = Done<BaseImage>> + Send;

    /// Returns what decides the results of steps apart from images, such as the network. It is part of
    /// all keys, and may not contain a secret.
    fn surroundings(&self) -> Vec<u8>;

    /// Downloads the file at a URL, within what the build may reach. `output` receives at most `maximum` bytes.
    fn download(&self, url: &str, maximum: u64, output: File) -> impl Future<Output = Done<Downloaded>> + Send;

    /// Starts a machine from an image.
    fn start(&self, image: &BaseImage) -> impl Future<Output = Done<Self::Machine>> + Send;

    /// Returns true if a state was kept under this key.
    fn has(&self, key: Key) -> bool;

    /// Starts a machine from the state under this key.
    fn restore(&self, key: Key) -> impl Future<Output = Done<Self::Machine>> + Send;

    /// Returns the number of [`StepLayer`]s below the layer of the state under this key, if the layer is
    /// known, so that no machine is needed to publish it.
    fn known_layer(&self, key: Key) -> Option<usize>;

    /// Returns true if the [`StepLayer`] under this key is known.
    fn has_step_layer(&self, key: Key) -> bool;

    /// Returns how many of the layers of a machine's image are above `base`, of which it was made.
    ///
    /// # Errors
    /// Fails if its image is not known.
    fn leading(&self, machine: &Self::Machine, base: &BaseImage) -> Done<usize>;

    /// Writes a tar archive of the names in an image: directories and symbolic links with their metadata, and
    /// every other file without content. It is hostile.
    fn names(&self, image: &BaseImage, output: File) -> impl Future<Output = Done<()>> + Send;

    /// Stores an image with layers above `base`, one for each step, and keeps the layers under their keys. The
    /// same layers give the same image.
    fn extend(&self, base: &BaseImage, layers: Vec<StepLayer>) -> impl Future<Output = Done<BaseImage>> + Send;

    /// Stores an image and returns the digest of its manifest. Without a machine, the layer is the
    /// known one.
    fn publish(
        &self,
        image: &NewImage,
        machine: Option<&mut Self::Machine>,
    ) -> impl Future<Output = Done<String>> + Send;

    /// Returns an empty file without a name, for archives.
    ///
    /// # Errors
    /// Fails if it cannot be created.
    fn scratch(&self) -> io::Result<File>;

    /// Returns the content of a cache mount as a tar archive in which it is called `x`.
    fn cache(&self, id: &str) -> Option<File>;

    /// Replaces the content of a cache mount. Returns false if it was not kept, which is not a failure
    /// of the build.
    fn keep_cache(&self, id: &str, archive: File) -> impl Future<Output = bool> + Send;
}
