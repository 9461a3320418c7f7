//! A `SOCK_SEQPACKET` Unix socket to a process of the network. One packet is one frame with one
//! message, and the descriptors that it names. What comes from the process is hostile: a packet has
//! a maximum size, and descriptors in it are dropped by the kernel.

use crate::vmm::wire::WireError;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
        sendmsg, socketpair,
    },
};
use sandboxvm_protocol::{
    egress::{MAX_MESSAGE, WIRE},
    frame::{FrameKind, HEADER_LEN, Message},
};
use serde::de::DeserializeOwned;
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Maximum number of descriptors in one packet: the frames, the dialer, and the certificates that the host and the operator
/// trust.
const MAX_FILES: usize = 4;

/// Returns a connected pair of sockets.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Our end of a connection.
#[derive(Debug)]
pub(super) struct Packets {
    socket: AsyncFd<OwnedFd>,
    buffer: Box<[u8]>,
}

impl Packets {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd owns its descriptor, keeps it open until it is dropped, which AsyncFd
        // does after it deregistered it, and answers as_raw_fd with that one descriptor at all
        // times.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) }?;
        Ok(Self { socket, buffer: vec![0; HEADER_LEN + MAX_MESSAGE].into() })
    }

    /// Sends a message with the descriptors that it names. Cancel safe: a packet is sent as a whole or
    /// not at all.
    pub(super) async fn send(&self, message: &impl Message, files: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let mut frame = Vec::new();
        WIRE.append_message(&mut frame, message, MAX_MESSAGE)?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            let mut ready = self.socket.writable().await?;
            let sent = ready.try_io(|socket| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
                    return Err(io::Error::other("too many descriptors"));
                }
                Ok(sendmsg(socket, &[IoSlice::new(&frame)], &mut ancillary, flags)?)
            });
            if let Ok(sent) = sent {
                sent?;
                return Ok(());
            }
        }
    }

    /// Returns the next message. Cancel safe.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, WireError> {
        let Self { socket, buffer } = self;
        let length = loop {
            let mut ready = socket.readable().await?;
            let received = ready.try_io(|socket| match recv(socket, &mut **buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => Ok(length),
                Err(Errno::CONNRESET) => Ok(0),
                Err(error) => Err(error.into()),
            });
            if let Ok(received) = received {
                break received?;
            }
        };
        let packet = buffer.get(..length).unwrap_or_default();
        if packet.is_empty() {
            return Err(WireError::Closed);
        }
        let Some((header, body)) = packet.split_first_chunk::<HEADER_LEN>() else { return Err(WireError::CutShort) };
        let header = WIRE.parse_header(header, MAX_MESSAGE)?;
        if header.kind != FrameKind::Message {
            return Err(WireError::Unexpected("stream data"));
        }
        if header.len != body.len() {
            return Err(WireError::CutShort);
        }
        Ok(WIRE.decode_message(body)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::egress::{EgressEvent, EgressRequest, MAX_LIST, NetworkSettings};

    #[tokio::test]
    async fn packets_carry_one_message_each_and_the_largest_settings() {
        let (ours, theirs) = pair().unwrap();
        let (ours, mut theirs) = (Packets::new(ours).unwrap(), Packets::new(theirs).unwrap());
        let settings = NetworkSettings { allow: vec!["a".repeat(150); MAX_LIST], ..NetworkSettings::default() };
        let large = EgressRequest::Configure(Box::new(settings));
        let sending = async {
            ours.send(&EgressRequest::Counters, &[]).await.unwrap();
            ours.send(&large, &[]).await.unwrap();
        };
        let receiving = async {
            assert_eq!(theirs.next::<EgressRequest>().await.unwrap(), EgressRequest::Counters);
            assert_eq!(theirs.next::<EgressRequest>().await.unwrap(), large);
        };
        tokio::join!(sending, receiving);
        drop(ours);
        assert!(matches!(theirs.next::<EgressRequest>().await, Err(WireError::Closed)));
    }

    #[tokio::test]
    async fn packets_that_are_no_message_are_errors() {
        let (ours, theirs) = pair().unwrap();
        let mut ours = Packets::new(ours).unwrap();
        let put = |bytes: &[u8]| rustix::io::write(&theirs, bytes).unwrap();
        put(b"SE\x01");
        assert!(matches!(ours.next::<EgressEvent>().await, Err(WireError::CutShort)));
        put(b"SE\x01\x01\x09\0\0\0\0");
        assert!(matches!(ours.next::<EgressEvent>().await, Err(WireError::CutShort)));
        put(b"SE\x02\x01\x01\0\0\0\0");
        assert!(matches!(ours.next::<EgressEvent>().await, Err(WireError::Frame(_))));
        put(b"SE\x01\x01\x01\0\0\0\0");
        assert_eq!(ours.next::<EgressEvent>().await.unwrap(), EgressEvent::Ready);
    }
}
