//! One control connection: frames in, frames out, never blocking. The event loop carries the requests
//! out. A peer that sends nonsense or does not read loses its connection and nothing else happens.

use super::descriptors::{self, ReceivedFds};
use sandboxvm_protocol::{
    frame::{FrameDecoder, FrameError, FrameKind},
    vmm::{ControlReply, ControlRequest, MAX_MESSAGE, Refusal, SINCE_REFUSALS, VmmEvent, VmmMessage, WIRE},
};
use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

/// Bytes of answers a peer may leave unread.
const MAX_UNREAD: usize = 2 * MAX_MESSAGE;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The peer closed it.
    #[error("peer closed the control connection")]
    Closed,
    /// The socket failed.
    #[error("control connection: {0}")]
    Io(#[from] io::Error),
    /// Not our wire.
    #[error("control connection: {0}")]
    Frame(#[from] FrameError),
    /// A frame that is not a message.
    #[error("control connection: unexpected {0:?} frame")]
    Kind(FrameKind),
    /// The peer does not read.
    #[error("control connection: the peer leaves more than {MAX_UNREAD} bytes unread")]
    Unread,
}

/// See the module.
#[derive(Debug)]
pub struct ControlConnection {
    stream: UnixStream,
    decoder: FrameDecoder,
    fds: ReceivedFds,
    unsent: Vec<u8>,
    watches: bool,
    /// The newest version of the wire that the peer stated: what it is sent has no newer parts.
    version: u8,
}

impl ControlConnection {
    /// Serves `stream`, whose peer speaks at least `version` of the wire; a watching connection gets events.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(stream: UnixStream, watches: bool, version: u8) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            decoder: FrameDecoder::new(WIRE, MAX_MESSAGE),
            fds: ReceivedFds::default(),
            unsent: Vec::new(),
            watches,
            version,
        })
    }

    /// The socket, to wait on.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// From now on events are sent.
    pub fn watch(&mut self) {
        self.watches = true;
    }

    /// True when bytes wait for the socket to become writable.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads what is there and returns the requests in it, in the words of the newest version. Files belong to the first request whose frame is whole after
    /// they came.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn receive(&mut self) -> Result<Vec<(ControlRequest, ReceivedFds)>, ControlError> {
        let mut bytes = [0; 4096];
        match descriptors::receive(&self.stream, &mut bytes, &mut self.fds) {
            Ok(0) => return Err(ControlError::Closed),
            Ok(n) => self.decoder.push(&bytes[..n]),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut requests = Vec::new();
        while let Some(frame) = self.decoder.next_frame()? {
            if frame.kind != FrameKind::Message {
                return Err(ControlError::Kind(frame.kind));
            }
            self.version = self.version.max(frame.version);
            let request: ControlRequest = WIRE.decode_message(frame.body)?;
            requests.push((request.newest(), std::mem::take(&mut self.fds)));
        }
        Ok(requests)
    }

    /// Answers the oldest request.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn reply(&mut self, reply: ControlReply) -> Result<(), ControlError> {
        let reply = match reply {
            ControlReply::Refused(Refusal { message, .. }) if self.version < SINCE_REFUSALS => {
                ControlReply::Failed { message }
            }
            reply => reply,
        };
        self.send(&VmmMessage::Reply(reply))
    }

    /// Tells a watcher; nothing for others.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn event(&mut self, event: &VmmEvent) -> Result<(), ControlError> {
        if self.watches { self.send(&VmmMessage::Event(event.clone())) } else { Ok(()) }
    }

    fn send(&mut self, message: &VmmMessage) -> Result<(), ControlError> {
        WIRE.append_message(&mut self.unsent, message, MAX_MESSAGE)?;
        self.flush()?;
        if self.unsent.len() > MAX_UNREAD { Err(ControlError::Unread) } else { Ok(()) }
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn flush(&mut self) -> Result<(), ControlError> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return Err(ControlError::Closed),
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::{
        frame::Wire,
        vmm::{FdIndex, RefusalKind, ResetDevice, v1},
    };
    use std::io::Read;

    fn refusal() -> Refusal {
        Refusal { kind: RefusalKind::NoSpace, message: "cannot write the snapshot".to_owned() }
    }

    /// Sends a request whose frame states `version`. Returns what the VMM reads, and its refusal as the client reads it.
    fn ask(version: u8, request: &ControlRequest) -> (ControlRequest, ControlReply) {
        let (mut client, vmm) = UnixStream::pair().unwrap();
        let mut connection = ControlConnection::new(vmm, false, WIRE.oldest).unwrap();
        let mut frame = Vec::new();
        WIRE.speaking(version).append_message(&mut frame, request, MAX_MESSAGE).unwrap();
        client.write_all(&frame).unwrap();
        let (received, _) = connection.receive().unwrap().remove(0);
        connection.reply(ControlReply::Refused(refusal())).unwrap();
        let mut bytes = [0; 4096];
        let length = client.read(&mut bytes).unwrap();
        // As a client of that build reads it.
        let mut decoder = FrameDecoder::new(Wire { version, ..WIRE }, MAX_MESSAGE);
        decoder.push(&bytes[..length]);
        let frame = decoder.next_frame().unwrap().unwrap();
        match WIRE.decode_message(frame.body).unwrap() {
            VmmMessage::Reply(reply) => (received, reply),
            VmmMessage::Event(event) => panic!("{event:?}"),
        }
    }

    #[test]
    fn client_receives_a_refusal_in_the_version_that_it_states() {
        let (_, reply) = ask(1, &ControlRequest::Pause);
        assert_eq!(reply, ControlReply::Failed { message: refusal().message });
        let (_, reply) = ask(2, &ControlRequest::Pause);
        assert_eq!(reply, ControlReply::Refused(refusal()));
    }

    #[test]
    fn request_of_version_1_arrives_in_the_words_of_the_newest() {
        let layers = vec![FdIndex(1), FdIndex(2)];
        let disks = vec![v1::DiskLayers(layers.clone())];
        let (received, _) = ask(1, &ControlRequest::ResetV1(v1::ResetRequest { state: FdIndex(0), disks }));
        let ControlRequest::Reset(request) = received else { panic!("{received:?}") };
        assert_eq!(request.devices, [ResetDevice::Block { layers }]);
    }
}
