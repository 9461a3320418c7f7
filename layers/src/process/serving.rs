//! The process, from its request to its end.

use super::{
    confinement::confine,
    packets::{self, PacketError},
    wire::{Event, Failure, FailureKind, Product, Request},
};
use crate::unpack::{Layer, list, unpack};
use rustix::fs::fstat;
use std::{fs::File, io, os::fd::OwnedFd};

/// Why the process ends without an answer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The caller, or its socket.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The request does not have a descriptor for each layer and one for the image.
    #[error("the request has {found} descriptors, expected {expected}")]
    Descriptors {
        /// Number of descriptors.
        found: usize,
        /// Number of layers, and one.
        expected: usize,
    },
    /// The image is not an empty file.
    #[error("the image must be an empty file")]
    NotEmpty,
    /// The image cannot be examined.
    #[error("cannot examine the image: {0}")]
    Io(#[from] io::Error),
}

/// Serves the one request that comes on a socket. Returns without an error if the caller ends before.
///
/// # Errors
/// Every [`ServeError`].
pub fn serve(caller: &OwnedFd) -> Result<(), ServeError> {
    let Some((request, mut descriptors)) = packets::receive::<Request>(caller, true)? else { return Ok(()) };
    let expected = request.layers.len() + 1;
    if descriptors.len() != expected {
        return Err(ServeError::Descriptors { found: descriptors.len(), expected });
    }
    let Some(image) = descriptors.pop() else { return Err(ServeError::NotEmpty) };
    if fstat(&image).map_err(io::Error::from)?.st_size != 0 {
        return Err(ServeError::NotEmpty);
    }
    let missing = match confine(&request.limits) {
        Ok(missing) => missing,
        Err(error) => {
            let failure = Failure::new(FailureKind::Process, &error);
            return Ok(packets::write(caller, &Event::Failed(failure))?);
        }
    };
    packets::write(caller, &Event::Confined(missing.iter().map(ToString::to_string).collect()))?;
    let layers = request.layers.iter().zip(descriptors).map(|(layer, descriptor)| Layer {
        input: File::from(descriptor),
        format: layer.format,
        diff_id: layer.diff_id,
    });
    let progress = |progress| {
        // A caller that ended kills this process.
        let _ = packets::write(caller, &Event::Progress(progress));
    };
    let made = match request.product {
        Product::Image => unpack(layers, &request.directories, image, &request.limits, progress),
        Product::List => list(layers, &request.directories, image, &request.limits, progress),
    };
    let event = match made {
        Ok(summary) => Event::Finished(summary),
        Err(error) => Event::Failed(Failure::from(&error)),
    };
    Ok(packets::write(caller, &event)?)
}
