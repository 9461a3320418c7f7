//! Receiving what the manager sends over the launch channel (fd 0): one frame with a [`LaunchConfig`] and all its open
//! files. The bytes come from the manager, which is trusted; the checks catch mistakes before KVM does.
//!
//! A server that has run since before an upgrade sends a frame of version 1 to the VMM of a newer bundle. It is read
//! here and is not seen anywhere else.

use super::descriptors::{self, ReceivedFds};
use rustix::io::Errno;
use sandboxvm_protocol::{
    frame::{FrameDecoder, FrameError},
    vmm::{LaunchConfig, MAX_MESSAGE, SINCE_DEVICES, WIRE, v1},
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
}

/// What the manager sent.
#[derive(Debug)]
pub struct Launch {
    /// The machine.
    pub config: LaunchConfig,
    /// Its open files.
    pub fds: ReceivedFds,
    /// The version of the wire that the manager speaks.
    pub version: u8,
}

/// Blocks until the launch frame is whole.
///
/// # Errors
/// See [`LaunchError`].
pub fn receive(channel: &UnixStream) -> Result<Launch, LaunchError> {
    let mut fds = ReceivedFds::default();
    let mut decoder = FrameDecoder::new(WIRE, MAX_MESSAGE);
    loop {
        if let Some(frame) = decoder.next_frame()? {
            let config = match frame.version {
                version if version < SINCE_DEVICES => WIRE.decode_message::<v1::LaunchConfig>(frame.body)?.into(),
                _ => WIRE.decode_message(frame.body)?,
            };
            return Ok(Launch { config, fds, version: frame.version });
        }
        let mut bytes = [0; 4096];
        match descriptors::receive(channel, &mut bytes, &mut fds)? {
            0 => return Err(LaunchError::Closed),
            n => decoder.push(&bytes[..n]),
        }
    }
}
