//! Open files that come with a message over a Unix socket (SCM_RIGHTS, unix(7)). Knows nothing of what
//! the files are for.

use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use sandboxvm_protocol::vmm::{FdIndex, MAX_FDS};
use std::{
    fs::File,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

/// A file that a message names did not come with it, or is named twice.
#[derive(Debug, thiserror::Error)]
#[error("the message names file {index} for {what}, which {why}")]
pub struct DescriptorError {
    index: u8,
    what: &'static str,
    why: &'static str,
}

/// Descriptors that came with a message, each to be taken once.
#[derive(Debug, Default)]
pub struct ReceivedFds(Vec<Option<OwnedFd>>);

impl ReceivedFds {
    /// Returns descriptors as if they had come with a message, in this order.
    #[cfg(test)]
    pub(crate) fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Takes the descriptor at `index`.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&mut self, index: FdIndex, what: &'static str) -> Result<OwnedFd, DescriptorError> {
        let fail = |why| DescriptorError { index: index.0, what, why };
        let slot = self.0.get_mut(usize::from(index.0)).ok_or_else(|| fail("did not come with it"))?;
        slot.take().ok_or_else(|| fail("is already in use"))
    }

    /// Takes the files at `indices`.
    ///
    /// # Errors
    /// When one did not come with the message.
    pub fn take_files(&mut self, indices: &[FdIndex], what: &'static str) -> Result<Vec<File>, DescriptorError> {
        indices.iter().map(|index| self.take(*index, what).map(File::from)).collect()
    }
}

/// Reads what is there into `bytes`, and adds the descriptors that came with it to `fds`. Returns the number of bytes,
/// 0 at the end of the stream.
///
/// # Errors
/// When recvmsg(2) fails.
pub fn receive(stream: &UnixStream, bytes: &mut [u8], fds: &mut ReceivedFds) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.0.extend(rights.map(Some));
        }
    }
    Ok(received.bytes)
}
