//! Receiving what the manager sends over the launch channel (fd 0): one frame with a [`LaunchConfig`] and all its open
//! files. The bytes come from the manager, which is trusted; the checks catch mistakes before KVM does.

use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use sandboxvm_protocol::{
    frame::{FrameDecoder, FrameError},
    vmm::{FdIndex, LaunchConfig, MAX_FDS, MAX_MESSAGE, WIRE},
};
use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

/// Why the launch frame could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// recvmsg failed.
    #[error(
        "cannot read the launch channel on standard input: {0}; sandboxvm-vmm is started by sandboxvm, not by hand"
    )]
    Receive(#[from] Errno),
    /// The channel closed first.
    #[error("the launch channel closed before a whole launch frame arrived")]
    Closed,
    /// Not a launch frame.
    #[error("launch frame: {0}")]
    Frame(#[from] FrameError),
    /// A file the configuration names did not come with it, or is named twice.
    #[error("launch frame names file {index} for {what}, which {why}")]
    Fd {
        /// Position.
        index: u8,
        /// Its use.
        what: &'static str,
        /// What is wrong.
        why: &'static str,
    },
}

/// Descriptors that came with a message, each to be taken once.
#[derive(Debug, Default)]
pub struct ReceivedFds(Vec<Option<OwnedFd>>);

impl ReceivedFds {
    /// Takes the descriptor at `index`.
    ///
    /// # Errors
    /// [`LaunchError::Fd`] when there is none.
    pub fn take(&mut self, index: FdIndex, what: &'static str) -> Result<OwnedFd, LaunchError> {
        let fail = |why| LaunchError::Fd { index: index.0, what, why };
        let slot = self.0.get_mut(usize::from(index.0)).ok_or_else(|| fail("did not come with it"))?;
        slot.take().ok_or_else(|| fail("is already in use"))
    }
}

/// Blocks until the launch frame is whole.
///
/// # Errors
/// See [`LaunchError`].
pub fn receive(channel: &UnixStream) -> Result<(LaunchConfig, ReceivedFds), LaunchError> {
    let mut fds = ReceivedFds::default();
    let mut decoder = FrameDecoder::new(WIRE, MAX_MESSAGE);
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok((WIRE.decode_message(frame.body)?, fds));
        }
        let bytes = receive_some(channel, &mut fds)?;
        decoder.push(&bytes);
    }
}

fn receive_some(channel: &UnixStream, fds: &mut ReceivedFds) -> Result<Vec<u8>, LaunchError> {
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.0.extend(rights.map(Some));
        }
    }
    if received.bytes == 0 {
        return Err(LaunchError::Closed);
    }
    bytes.truncate(received.bytes);
    Ok(bytes)
}
