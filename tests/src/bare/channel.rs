//! The launch channel after the launch: requests, their responses, and the events that the VMM
//! sends without a request.

use super::launch::send;
use sandboxvm_protocol::{
    frame::FrameDecoder,
    vmm::{ControlReply, ControlRequest, ExitReason, MAX_MESSAGE, VmmEvent, VmmMessage, WIRE},
};
use std::{
    io::{ErrorKind, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

/// The result of waiting for a message.
#[derive(Debug)]
enum Received {
    Message(VmmMessage),
    /// The VMM closed the channel.
    Closed,
    /// No message arrived in time.
    Silence,
}

#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    decoder: FrameDecoder,
    /// Why the machine ended, after the VMM reported it.
    pub(super) ended: Option<ExitReason>,
    closed: bool,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: FrameDecoder::new(WIRE, MAX_MESSAGE), ended: None, closed: false }
    }

    fn receive(&mut self, deadline: Instant) -> Received {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("a VMM sends whole frames") {
                let message = WIRE.decode_message(frame.body).expect("a VMM sends messages that decode");
                if let VmmMessage::Event(VmmEvent::Ended(reason)) = &message {
                    self.ended = Some(reason.clone());
                }
                return Received::Message(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Received::Silence;
            }
            self.stream.set_read_timeout(Some(left)).expect("a time to wait");
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.closed = true;
                    return Received::Closed;
                }
                Ok(read) => self.decoder.push(&bytes[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    self.closed = true;
                    return Received::Closed;
                }
                Err(error) => panic!("the launch channel: {error}"),
            }
        }
    }

    /// Waits until the VMM has closed the channel. Returns false if it did not in time.
    pub(super) fn wait_for_end(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while !self.closed {
            if matches!(self.receive(deadline), Received::Silence) {
                return false;
            }
        }
        true
    }

    /// Sends a request and waits for the response. Returns `None` if the machine ended instead.
    ///
    /// # Panics
    /// Panics if neither happens in time: then something blocks the VMM's event loop.
    pub(super) fn ask(&mut self, request: &ControlRequest, within: Duration) -> Option<ControlReply> {
        self.ask_with(request, &[], within)
    }

    /// As [`Channel::ask`], with the files that the request needs.
    pub(super) fn ask_with(
        &mut self,
        request: &ControlRequest,
        files: &[OwnedFd],
        within: Duration,
    ) -> Option<ControlReply> {
        if self.closed {
            return None;
        }
        send(&self.stream, request, files);
        let deadline = Instant::now() + within;
        loop {
            match self.receive(deadline) {
                Received::Message(VmmMessage::Reply(reply)) => return Some(reply),
                Received::Message(VmmMessage::Event(_)) => {}
                Received::Closed => return None,
                Received::Silence => panic!("the VMM did not answer {request:?} within {within:?}"),
            }
        }
    }
}
