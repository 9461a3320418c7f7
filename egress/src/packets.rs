//! Packets with open files over a `SOCK_SEQPACKET` Unix socket, and the messages in them. Owns how a packet is read and
//! written, and knows nothing of what a message means.

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use sandboxvm_protocol::{
    egress::{MAX_MESSAGE, WIRE},
    frame::{FrameDecoder, FrameError, FrameKind, HEADER_LEN, Message},
    vmm::FdIndex,
};
use serde::de::DeserializeOwned;
use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

/// Maximum number of descriptors that come with one packet.
pub const MAX_PACKET_FDS: usize = 4;

/// Why a packet is not a message.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The socket failed.
    #[error("cannot read a packet: {0}")]
    Socket(#[from] Errno),
    /// The packet is longer than the longest message, or came with too many descriptors.
    #[error("a packet is too long, or comes with too many descriptors")]
    TooLong,
    /// The packet is not one frame.
    #[error("cannot read a packet: {0}")]
    Frame(#[from] FrameError),
    /// The packet is not exactly one frame with a message.
    #[error("a packet is not exactly one message")]
    NotOneMessage,
    /// A descriptor that the message names did not come with it.
    #[error("descriptor {0} did not come with the message")]
    Descriptor(u8),
}

/// What was read.
#[derive(Debug)]
pub struct Packet {
    /// Number of bytes; 0 at the end of the connection.
    pub bytes: usize,
    /// The descriptors that came with them.
    pub fds: Vec<OwnedFd>,
}

/// Reads one packet into `buffer`. A packet that does not fit, or whose descriptors do not, is an error: the rest of it is
/// lost.
///
/// # Errors
/// When recvmsg(2) fails, or [`PacketError::TooLong`].
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Packet, PacketError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(PacketError::TooLong);
    }
    Ok(Packet { bytes: received.bytes, fds })
}

/// Sends one packet, with a descriptor or without one.
///
/// # Errors
/// When sendmsg(2) fails.
pub fn send_with(socket: impl AsFd, bytes: &[u8], fd: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(AsFd::as_fd);
    if let Some(fd) = &fds {
        // The space is for one descriptor, so it always fits.
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// A message of the supervisor, and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    fds: Vec<Option<OwnedFd>>,
}

impl<T> Received<T> {
    /// Takes the descriptor that the message names.
    ///
    /// # Errors
    /// When it did not come with the message, or was taken already.
    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, PacketError> {
        self.fds.get_mut(usize::from(index.0)).and_then(Option::take).ok_or(PacketError::Descriptor(index.0))
    }
}

/// Receives one message from the supervisor. Returns none at the end of the connection.
///
/// # Errors
/// Every [`PacketError`]; [`Errno::AGAIN`] if the socket is non-blocking and there is no packet.
pub fn receive_message<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<Received<T>>, PacketError> {
    let mut buffer = vec![0; HEADER_LEN + MAX_MESSAGE];
    let packet = receive(socket, &mut buffer)?;
    if packet.bytes == 0 {
        return Ok(None);
    }
    let mut decoder = FrameDecoder::new(WIRE, MAX_MESSAGE);
    decoder.push(&buffer[..packet.bytes]);
    let message = match decoder.next_frame()? {
        Some(frame) if frame.kind == FrameKind::Message => WIRE.decode_message(frame.body)?,
        Some(_) | None => return Err(PacketError::NotOneMessage),
    };
    if !decoder.is_at_boundary() {
        return Err(PacketError::NotOneMessage);
    }
    Ok(Some(Received { message, fds: packet.fds.into_iter().map(Some).collect() }))
}

/// Returns `message` as one packet.
///
/// # Errors
/// When it is longer than [`MAX_MESSAGE`].
pub fn to_packet<T: Message>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut packet = Vec::new();
    WIRE.append_message(&mut packet, message, MAX_MESSAGE)?;
    Ok(packet)
}
