//! Messages to a VMM that carry open files: one frame, and the descriptors that it refers to by
//! index, in one packet.

use crate::home::directory::DirectoryError;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sandboxvm_protocol::{
    frame::{FrameError, Message, Wire},
    vmm::{FdIndex, MAX_FDS, MAX_MESSAGE},
};
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

/// Why a VMM was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The process did not start.
    #[error("cannot run the VMM {}: {source}", .path.display())]
    Spawn {
        /// Path of the program.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Setting up or using the launch channel failed.
    #[error("cannot send the VMM its configuration: {0}")]
    Channel(#[from] io::Error),
    /// The record of its process cannot be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The configuration does not fit a frame.
    #[error("cannot send the VMM its configuration: {0}")]
    Frame(#[from] FrameError),
}

/// Collects the descriptors that a message names by index.
#[derive(Debug, Default)]
pub(crate) struct LaunchFiles<'a>(Vec<BorrowedFd<'a>>);

impl<'a> LaunchFiles<'a> {
    /// Adds a file and returns its index. A launch has some dozen files; the maximum of the
    /// protocol is checked on sending.
    pub(crate) fn add(&mut self, file: &'a impl AsFd) -> FdIndex {
        let index = FdIndex(u8::try_from(self.0.len()).unwrap_or(u8::MAX));
        self.0.push(file.as_fd());
        index
    }
}

/// Sends frame and descriptors in one sendmsg(2): a stream delivers descriptors with the first byte
/// they were sent with.
pub(crate) fn send(
    channel: impl AsFd,
    wire: Wire,
    message: &impl Message,
    files: &LaunchFiles<'_>,
) -> Result<(), LaunchError> {
    let mut frame = Vec::new();
    wire.append_message(&mut frame, message, MAX_MESSAGE)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files.0)) {
        return Err(io::Error::other(format!("{} files are more than one message takes", files.0.len())).into());
    }
    // The buffer of the socket is empty and larger than any launch frame, so the write cannot be
    // short.
    let sent = sendmsg(channel, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        .map_err(io::Error::from)?;
    if sent == frame.len() {
        Ok(())
    } else {
        Err(io::Error::other(format!("only {sent} of {} bytes were taken", frame.len())).into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use sandboxvm_protocol::{
        frame::FrameDecoder,
        ids::SandboxId,
        machine::{MemorySize, VcpuCount},
        vmm::{ConsoleConfig, DeviceConfig, DiskConfig, LaunchConfig, MachineSource, WIRE},
    };
    use std::{
        fs::File,
        io::{IoSliceMut, Read, Write},
        os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    };

    pub(crate) fn config() -> LaunchConfig {
        LaunchConfig {
            sandbox: SandboxId::try_from("abcdefgh".to_owned()).unwrap(),
            vcpus: VcpuCount::ONE,
            memory: MemorySize::try_from(256 << 20).unwrap(),
            source: MachineSource::Boot { kernel: FdIndex(0), cmdline_extra: String::new() },
            devices: vec![DeviceConfig::Block(DiskConfig::ReadOnly { image: FdIndex(1) }), DeviceConfig::Rng],
            console: ConsoleConfig { log: FdIndex(0), limit: 1 << 20 },
            control: FdIndex(0),
            status: FdIndex(0),
            lock: FdIndex(0),
            start: true,
            tie_to_launcher: false,
        }
    }

    #[test]
    fn peer_receives_configuration_and_files_in_one_message() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let mut first = tempfile::tempfile().unwrap();
        first.write_all(b"first").unwrap();
        let mut second = tempfile::tempfile().unwrap();
        second.write_all(b"second").unwrap();
        let mut files = LaunchFiles::default();
        assert_eq!((files.add(&first), files.add(&second)), (FdIndex(0), FdIndex(1)));
        send(&ours, WIRE, &config(), &files).unwrap();

        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let read =
            recvmsg(&theirs, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let received: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let mut decoder = FrameDecoder::new(WIRE, MAX_MESSAGE);
        decoder.push(&bytes[..read.bytes]);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(WIRE.decode_message::<LaunchConfig>(frame.body).unwrap(), config());
        let contents: Vec<String> = received
            .into_iter()
            .map(|fd| {
                let mut text = String::new();
                let mut file = File::from(fd);
                std::io::Seek::rewind(&mut file).unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            })
            .collect();
        assert_eq!(contents, ["first", "second"]);
    }
}
