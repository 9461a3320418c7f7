//! The cable of a machine's network card, from the manager's side: a socket pair, of which the VMM
//! gets one end.

use super::{
    control::{ControlClient, ControlError},
    descriptors::LaunchFiles,
    wire::WireError,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sandboxvm_protocol::vmm::{ControlReply, ControlRequest};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

/// Maximum time until a VMM has attached a socket. The limit allows for a host that swaps.
const ATTACHED_WITHIN: Duration = Duration::from_secs(4);

/// Returns a connected pair of sockets for packets.
pub(crate) fn cable() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Connects the card to `frames`, in place of the socket before. Frames that wait in that one are lost.
pub(crate) async fn attach(control: &mut ControlClient, frames: &impl AsFd) -> Result<(), ControlError> {
    let mut files = LaunchFiles::default();
    let request = ControlRequest::AttachNetwork { frames: files.add(frames) };
    match control.request_with(request, &files, ATTACHED_WITHIN).await? {
        Ok(ControlReply::Done) => Ok(()),
        Ok(_) => Err(WireError::Unexpected("another request's reply").into()),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Takes the link away, with all frames that are on their way to the guest.
pub(crate) async fn detach(control: &mut ControlClient) -> Result<(), ControlError> {
    // The VMM has no request for it. Without a peer the socket is not a link, and it replaces the one before.
    let (frames, peer) = cable().map_err(WireError::from)?;
    drop(peer);
    attach(control, &frames).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
    use sandboxvm_protocol::vmm::{MAX_MESSAGE, VmmMessage, WIRE};
    use std::{
        io::{IoSliceMut, Write},
        mem::MaybeUninit,
        os::unix::net::UnixStream,
    };
    use tokio::task::spawn_blocking;

    /// Takes one request, answers that it is done, and returns the request and the file in it.
    fn take_request(mut vmm: UnixStream) -> (Vec<u8>, OwnedFd) {
        let mut request = vec![0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = {
            let mut parts = [IoSliceMut::new(&mut request)];
            recvmsg(&vmm, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap()
        };
        request.truncate(received.bytes);
        let file = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let mut reply = Vec::new();
        WIRE.append_message(&mut reply, &VmmMessage::Reply(ControlReply::Done), MAX_MESSAGE).unwrap();
        vmm.write_all(&reply).unwrap();
        (request, file.unwrap())
    }

    #[tokio::test]
    async fn detached_card_has_a_socket_without_a_peer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let vmm = spawn_blocking(move || take_request(theirs));
        let mut control = ControlClient::over_signed(ours).unwrap();
        detach(&mut control).await.unwrap();
        let (request, frames) = vmm.await.unwrap();
        let mut expected = Vec::new();
        let attach = ControlRequest::AttachNetwork { frames: sandboxvm_protocol::vmm::FdIndex(0) };
        // The VMM of a launch channel is of this build.
        WIRE.speaking(WIRE.version).append_message(&mut expected, &attach, MAX_MESSAGE).unwrap();
        assert_eq!(request, expected);
        assert_eq!(recv(&frames, &mut [0; 16], RecvFlags::DONTWAIT).unwrap().0, 0, "the link is down");
    }
}
