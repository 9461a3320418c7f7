//! Receiving what the manager sends over the launch channel (fd 0): one frame with a [`LaunchConfig`] and all its open
//! files. The bytes come from the manager, which is trusted; the checks catch mistakes before KVM does.

use crate::descriptors::{self, DescriptorError, ReceivedFds};
use rustix::io::Errno;
use sandboxvm_protocol::{
    frame::{FrameDecoder, FrameError},
    vmm::{LaunchConfig, MAX_MESSAGE, WIRE},
};
use std::os::unix::net::UnixStream;

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
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
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
        let mut bytes = [0; 4096];
        match descriptors::receive(channel, &mut bytes, &mut fds)? {
            0 => return Err(LaunchError::Closed),
            n => decoder.push(&bytes[..n]),
        }
    }
}
