//! Starts the process and listens to it.

use super::{
    packets::{self, PacketError},
    wire::{Event, Failure, LayerSource, Product, Request},
};
use crate::{
    limits::{Limits, MAX_LAYERS},
    unpack::{Progress, Summary},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// Why a process does not deliver an image.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The process cannot be started.
    #[error("cannot start {}: {source}", .program.display())]
    Start {
        /// Its program.
        program: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// There are more layers than descriptors fit a packet.
    #[error("the image has {0} layers, and at most {MAX_LAYERS} are supported")]
    TooManyLayers(usize),
    /// The process does not keep to the protocol.
    #[error("the layer process failed: {0}")]
    Packet(#[from] PacketError),
    /// The process ended without a result: it exceeded its limit of memory or time, or has a bug.
    #[error("the layer process ended without a result ({0})")]
    Ended(String),
    /// The process reports that there is no image.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// The program, by its path.
#[derive(Debug, Clone)]
pub struct Unpacker {
    program: PathBuf,
}

/// A process that reads layers. It is killed when this is dropped.
#[derive(Debug)]
pub struct Unpacking {
    child: Child,
    socket: OwnedFd,
}

impl Unpacker {
    /// Uses the program at a path.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Starts a process that reads layers, the lowest one first, and writes the product to an empty file.
    /// Descriptors of layers should be open for reading only, because the process may be taken over.
    ///
    /// The kernel kills the process when the thread that calls this ends.
    ///
    /// # Errors
    /// When the process cannot be started, or does not receive its request.
    pub fn start(
        &self,
        product: Product,
        layers: &[(LayerSource, BorrowedFd<'_>)],
        directories: &[Vec<u8>],
        image: BorrowedFd<'_>,
        limits: &Limits,
    ) -> Result<Unpacking, ProcessError> {
        if layers.len() > MAX_LAYERS {
            return Err(ProcessError::TooManyLayers(layers.len()));
        }
        let failed = |source| ProcessError::Start { program: self.program.clone(), source };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| failed(error.into()))?;
        let mut command = Command::new(&self.program);
        // A process that was taken over must not write to the terminal of the user, or read from it.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let unpacking = Unpacking { child, socket: ours };
        let request = Request {
            product,
            layers: layers.iter().map(|(layer, _)| *layer).collect(),
            directories: directories.to_vec(),
            limits: limits.clone(),
        };
        let descriptors: Vec<_> = layers.iter().map(|(_, descriptor)| *descriptor).chain([image]).collect();
        packets::send_with(&unpacking.socket, &request, &descriptors)?;
        Ok(unpacking)
    }

    /// Reads layers as [`Self::start`] does, and waits for their image.
    ///
    /// # Errors
    /// Every [`ProcessError`].
    pub fn run(
        &self,
        layers: &[(LayerSource, BorrowedFd<'_>)],
        directories: &[Vec<u8>],
        image: BorrowedFd<'_>,
        limits: &Limits,
        mut progress: impl FnMut(Progress),
    ) -> Result<Summary, ProcessError> {
        let mut unpacking = self.start(Product::Image, layers, directories, image, limits)?;
        loop {
            match unpacking.next_event()? {
                Event::Confined(_) => {}
                Event::Progress(made) => progress(made),
                Event::Finished(summary) => return Ok(summary),
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
    }
}

impl Unpacking {
    /// Waits for the next event. [`Event::Finished`] and [`Event::Failed`] are the last ones. What an event
    /// says is hostile: only the image counts, and whether it is one. A process that waits for a layer, or
    /// was taken over, may never say anything: wait on the descriptor with a timeout, and drop this.
    ///
    /// # Errors
    /// When the process ends without a result, or does not keep to the protocol.
    pub fn next_event(&mut self) -> Result<Event, ProcessError> {
        match packets::receive::<Event>(&self.socket, false)? {
            Some((event, _)) => Ok(event.escaped()),
            None => Err(ProcessError::Ended(self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string()))),
        }
    }
}

/// The socket, to wait for events with others.
impl AsFd for Unpacking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        // A process that has ended already is only waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
