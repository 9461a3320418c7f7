//! Packets with messages and descriptors over a `SOCK_SEQPACKET` Unix socket.

use super::wire::{MAX_MESSAGE, WIRE};
use crate::limits::MAX_LAYERS;
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use sandboxvm_protocol::frame::{FrameError, FrameKind, HEADER_LEN, Message};
use serde::de::DeserializeOwned;
use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Maximum number of descriptors of a packet: the layers and the image.
const MAX_DESCRIPTORS: usize = MAX_LAYERS + 1;

/// Why a packet is not a message.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(#[from] Errno),
    /// The packet is longer than the longest message, or came with too many descriptors.
    #[error("a packet is too long, or comes with too many descriptors")]
    TooLong,
    /// The packet is not a frame.
    #[error("invalid packet: {0}")]
    Frame(#[from] FrameError),
    /// The packet is not exactly one frame with a message.
    #[error("a packet is not exactly one message")]
    NotOneMessage,
}

/// Receives a message, and the descriptors that came with it if it may have some. Returns none at the end
/// of the connection.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    takes_descriptors: bool,
) -> Result<Option<(T, Vec<OwnedFd>)>, PacketError> {
    let mut buffer = vec![0; HEADER_LEN + MAX_MESSAGE];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    // Without space, the kernel drops descriptors.
    let space = if takes_descriptors { &mut space[..] } else { &mut [] };
    let mut control = RecvAncillaryBuffer::new(space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            received => break received?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(PacketError::TooLong);
    }
    let packet = &buffer[..received.bytes];
    let Some((header, body)) = packet.split_first_chunk::<HEADER_LEN>() else {
        return Err(PacketError::NotOneMessage);
    };
    let header = WIRE.parse_header(header, MAX_MESSAGE)?;
    if header.kind != FrameKind::Message || header.len != body.len() {
        return Err(PacketError::NotOneMessage);
    }
    Ok(Some((WIRE.decode_message(body)?, descriptors)))
}

/// Sends a message with descriptors.
pub(super) fn send_with<T: Message>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), PacketError> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(PacketError::TooLong);
    }
    let mut packet = Vec::new();
    WIRE.append_message(&mut packet, message, MAX_MESSAGE)?;
    sendmsg(socket, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends a message by write(2), which the confined process keeps.
pub(super) fn write<T: Message>(socket: impl AsFd, message: &T) -> Result<(), PacketError> {
    let mut packet = Vec::new();
    WIRE.append_message(&mut packet, message, MAX_MESSAGE)?;
    loop {
        match rustix::io::write(&socket, &packet) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}
