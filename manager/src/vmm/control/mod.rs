//! The client of a VMM's control socket: one request, one reply, and events in between if the
//! client asked for them. A VMM that does not answer in time is treated as unable to answer; no
//! caller may wait without limit.
//!
//! A VMM may be of an older build: it runs since before an upgrade. The version of the wire that it
//! speaks is in its status file, and is what every frame states that is sent to it.

mod error;

pub use error::{ControlError, VmmRefusal};

use crate::{
    home::directory::{CONTROL_SOCKET, SandboxDirectory},
    hostile_text::{one_line, shown},
    vmm::{
        descriptors,
        descriptors::{LaunchError, LaunchFiles},
        state,
        wire::{self, FrameReader, WireError},
    },
};
use futures_util::future::BoxFuture;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, UCred, recvmsg, sockopt::set_socket_passcred};
use sandboxvm_protocol::{
    frame::{Message, Wire},
    vmm::{ControlReply, ControlRequest, MAX_MESSAGE, Phase, Refusal, Timeline, VmStats, VmmEvent, VmmMessage, WIRE},
};
use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::unix::net::UnixStream as StdUnixStream,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// A VMM answers from its event loop in well under a millisecond; the limit allows for a host that
/// swaps.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Maximum number of events between a request and its reply. A machine boots, is paused and resumed
/// by hand, and ends, which are far fewer events.
const MAX_EVENTS: usize = 64;

/// The reply to a request, or the VMM's refusal.
pub(crate) type Answer = Result<ControlReply, VmmRefusal>;

/// A connection to a VMM's control socket.
#[derive(Debug)]
pub(crate) struct ControlClient {
    /// Name of the sandbox, or its ID if it has none.
    sandbox: Option<String>,
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Events that arrived while a reply was awaited. Empty unless the connection watches.
    events: VecDeque<VmmEvent>,
    watches: bool,
    /// What the VMM speaks: its oldest version is the one that every frame states.
    wire: Wire,
}

impl ControlClient {
    /// Connects to the control socket of a VMM, which may be of an older build.
    pub(crate) fn connect<'a>(directory: &'a SandboxDirectory) -> BoxFuture<'a, Result<Self, ControlError>> {
        Box::pin(async move {
            // Without a status there is no VMM yet, or one that says nothing.
            let version = state::status(directory)?.map_or(WIRE.oldest, |status| status.wire);
            // The directory has the ID as its name.
            let id = directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            match directory.connect(CONTROL_SOCKET).await {
                Ok(stream) => Ok(Self { watches: false, ..Self::over(stream).speaking(version).called(id) }),
                // The backlog of the socket is full.
                Err(error) if error.is_would_block() => Err(ControlError::Silent(Some(id))),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Uses a stream that is connected already: the launch channel of a VMM of the present build.
    /// It watches from its start.
    pub(crate) fn over(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let reader = FrameReader::new(reader, WIRE, MAX_MESSAGE);
        Self {
            sandbox: None,
            reader,
            writer,
            events: VecDeque::new(),
            watches: true,
            wire: WIRE.speaking(WIRE.version),
        }
    }

    /// Sets the version of the wire that the VMM speaks.
    pub(crate) fn speaking(mut self, version: u8) -> Self {
        self.wire = WIRE.speaking(version);
        self
    }

    /// Returns the version of the wire that the VMM speaks, as far as it is known here.
    pub(crate) fn speaks(&self) -> u8 {
        self.wire.oldest
    }

    /// Like [`Self::over`], for a channel on which [`Self::sender`] will be called.
    pub(crate) fn over_signed(stream: StdUnixStream) -> io::Result<Self> {
        set_socket_passcred(&stream, true)?;
        stream.set_nonblocking(true)?;
        Ok(Self::over(UnixStream::from_std(stream)?))
    }

    /// Returns the process that sent the next message, as reported by the kernel: a sender cannot
    /// claim to be another process. Does not consume the message. Cancel safe.
    pub(crate) async fn sender(&self) -> Result<UCred, ControlError> {
        let stream = self.writer.as_ref();
        let ended = || ControlError::from(WireError::Closed);
        loop {
            stream.readable().await.map_err(WireError::from)?;
            match stream.try_io(Interest::READABLE, || peek_sender(stream)) {
                Ok(sender) => return sender.ok_or_else(ended),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(WireError::from(error).into()),
            }
        }
    }

    /// Asks for events from now on.
    pub(crate) async fn watch(&mut self) -> Result<(), ControlError> {
        self.watches = true;
        self.ask(ControlRequest::Watch).await
    }

    /// Sets the name under which errors report the sandbox.
    pub(crate) fn called(mut self, sandbox: String) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    /// Sends a request whose reply is Done.
    pub(crate) fn ask<'a>(&'a mut self, request: ControlRequest) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async move {
            match self.request(request).await?? {
                ControlReply::Done => Ok(()),
                _ => Err(WireError::Unexpected("another request's reply").into()),
            }
        })
    }

    pub(crate) async fn stats(&mut self) -> Result<VmStats, ControlError> {
        match self.request(ControlRequest::Stats).await?? {
            ControlReply::Stats(stats) => Ok(*stats),
            _ => Err(WireError::Unexpected("reply without statistics").into()),
        }
    }

    pub(crate) async fn timeline(&mut self) -> Result<Timeline, ControlError> {
        match self.request(ControlRequest::Timeline).await?? {
            ControlReply::Timeline(timeline) => Ok(timeline),
            _ => Err(WireError::Unexpected("reply without a timeline").into()),
        }
    }

    async fn request(&mut self, request: ControlRequest) -> Result<Answer, ControlError> {
        let request = request.for_version(self.speaks()).ok_or(ControlError::TooOld)?;
        let answer = async {
            wire::send(&mut self.writer, self.wire, &request, MAX_MESSAGE).await?;
            self.reply().await
        };
        timeout(ANSWER_WITHIN, answer).await.map_err(|_| ControlError::Silent(self.sandbox.clone()))?
    }

    /// Sends a request with files and waits at most `within` for the reply. No other request may be
    /// in progress on this connection.
    pub(crate) async fn request_with(
        &mut self,
        request: ControlRequest,
        files: &LaunchFiles<'_>,
        within: Duration,
    ) -> Result<Answer, ControlError> {
        let request = request.for_version(self.speaks()).ok_or(ControlError::TooOld)?;
        self.send_with(&request, files)?;
        timeout(within, self.reply()).await.map_err(|_| ControlError::Unfinished(within))?
    }

    /// Sends a message with files in one system call. No other request may be in progress on this
    /// connection.
    pub(crate) fn send_with(&self, message: &impl Message, files: &LaunchFiles<'_>) -> Result<(), LaunchError> {
        descriptors::send(self.writer.as_ref(), self.wire, message, files)
    }

    /// Waits for a reply. A VMM that was taken over may send events as long as a reply is awaited:
    /// so only events that were asked for are kept, and no more of them than a machine has.
    async fn reply(&mut self) -> Result<Answer, ControlError> {
        for _ in 0..=MAX_EVENTS {
            match self.next_message().await? {
                VmmMessage::Reply(ControlReply::Failed { message }) => {
                    return Ok(Err(VmmRefusal { kind: None, message: one_line(&message) }));
                }
                VmmMessage::Reply(ControlReply::Refused(Refusal { kind, message })) => {
                    return Ok(Err(VmmRefusal { kind: Some(kind), message: one_line(&message) }));
                }
                VmmMessage::Reply(reply) => return Ok(Ok(reply)),
                VmmMessage::Event(event) if self.watches && self.events.len() < MAX_EVENTS => {
                    self.events.push_back(event);
                }
                VmmMessage::Event(_) => {}
            }
        }
        Err(WireError::Unexpected("more events than one machine has in its life").into())
    }

    /// Reads the next message of the VMM, and makes text in it safe to show.
    async fn next_message(&mut self) -> Result<VmmMessage, WireError> {
        Ok(match self.reader.next_message().await? {
            VmmMessage::Event(VmmEvent::Ended(reason)) => VmmMessage::Event(VmmEvent::Ended(shown(reason))),
            message => message,
        })
    }

    /// Returns the next event. For connections that watch. Cancel safe.
    pub(crate) async fn next_event(&mut self) -> Result<VmmEvent, WireError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            if let VmmMessage::Event(event) = self.next_message().await? {
                return Ok(event);
            }
        }
    }

    /// Waits until the agent listens. For connections that watch. Cancel safe.
    pub(crate) async fn ready(&mut self) -> Result<(), ControlError> {
        loop {
            match self.next_event().await? {
                VmmEvent::Phase(Phase::Ready) => return Ok(()),
                VmmEvent::Phase(_) => {}
                VmmEvent::Ended(reason) => return Err(ControlError::Ended(reason)),
            }
        }
    }
}

/// Returns `None` at the end of the channel.
fn peek_sender(stream: &UnixStream) -> io::Result<Option<UCred>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let read = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
    let sender = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => Some(sender),
        _ => None,
    });
    Ok(sender.filter(|_| read.bytes > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::vmm::{ExitReason, RefusalKind};

    async fn vmm_that_says(messages: Vec<VmmMessage>) -> ControlClient {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for message in messages {
            wire::send(&mut theirs, WIRE, &message, MAX_MESSAGE).await.unwrap();
        }
        tokio::spawn(async move {
            let mut reader = FrameReader::new(theirs, WIRE, MAX_MESSAGE);
            while reader.next_message::<ControlRequest>().await.is_ok() {}
        });
        ControlClient::over(ours).called("demo".to_owned())
    }

    #[tokio::test]
    async fn events_between_replies_are_skipped() {
        let mut client = vmm_that_says(vec![
            VmmMessage::Event(VmmEvent::Phase(Phase::Paused)),
            VmmMessage::Reply(ControlReply::Done),
            VmmMessage::Reply(ControlReply::Failed { message: "no".into() }),
        ])
        .await;
        client.ask(ControlRequest::Pause).await.unwrap();
        assert_eq!(client.ask(ControlRequest::Pause).await.unwrap_err().to_string(), "no");
    }

    #[tokio::test]
    async fn vmm_messages_are_escaped_and_on_one_line() {
        let forged = "no\nsandboxvm: yes\x1b[2J";
        let reason = ExitReason::HostFailure { message: forged.into() };
        let mut client = vmm_that_says(vec![
            VmmMessage::Reply(ControlReply::Failed { message: forged.into() }),
            VmmMessage::Event(VmmEvent::Ended(reason)),
        ])
        .await;
        let refused = client.ask(ControlRequest::Pause).await.unwrap_err().to_string();
        assert_eq!(refused, "no\\nsandboxvm: yes\\u{1b}[2J");
        let ended = client.ready().await.unwrap_err().to_string();
        assert_eq!(ended, "host failure: no\\nsandboxvm: yes\\u{1b}[2J");
    }

    #[tokio::test]
    async fn kind_of_a_refusal_is_kept_and_an_older_vmm_has_none() {
        let message = || "cannot write the snapshot".to_owned();
        let mut client = vmm_that_says(vec![
            VmmMessage::Reply(ControlReply::Refused(Refusal { kind: RefusalKind::NoSpace, message: message() })),
            VmmMessage::Reply(ControlReply::Failed { message: message() }),
        ])
        .await;
        for kind in [Some(RefusalKind::NoSpace), None] {
            let refused = client.ask(ControlRequest::Pause).await.unwrap_err();
            assert_eq!((refused.refusal(), refused.to_string()), (kind, message()));
        }
    }

    /// Sends a request to a VMM that speaks `version`. Returns the frame.
    async fn frame_to(version: u8, request: ControlRequest) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let answer = VmmMessage::Reply(ControlReply::Done);
        wire::send(&mut theirs, WIRE, &answer, MAX_MESSAGE).await.unwrap();
        let mut client = ControlClient::over(ours).speaking(version);
        client.request_with(request, &LaunchFiles::default(), ANSWER_WITHIN).await.unwrap().unwrap();
        let mut frame = vec![0; 4096];
        let length = tokio::io::AsyncReadExt::read(&mut theirs, &mut frame).await.unwrap();
        frame.truncate(length);
        frame
    }

    #[tokio::test]
    async fn vmm_of_an_older_build_receives_what_it_understands() {
        use sandboxvm_protocol::vmm::{FdIndex, ResetDevice, ResetRequest, v1};
        let request = || {
            let devices = vec![ResetDevice::Block { layers: vec![FdIndex(1), FdIndex(2)] }];
            ControlRequest::Reset(ResetRequest { state: FdIndex(0), devices })
        };
        let older = frame_to(1, request()).await;
        let disks = vec![v1::DiskLayers(vec![FdIndex(1), FdIndex(2)])];
        let expected = ControlRequest::ResetV1(v1::ResetRequest { state: FdIndex(0), disks });
        assert_eq!((older[2], WIRE.decode_message(&older[8..])), (1, Ok(expected)));
        let present = frame_to(2, request()).await;
        assert_eq!((present[2], WIRE.decode_message(&present[8..])), (2, Ok(request())));
        // From this the VMM knows that it may answer in version 2, also to what version 1 has.
        assert_eq!(frame_to(1, ControlRequest::Pause).await[2], 1);
        assert_eq!(frame_to(2, ControlRequest::Pause).await[2], 2);
        // A hostile VMM may claim any version.
        assert_eq!(frame_to(0, ControlRequest::Pause).await[2], 1);
        assert_eq!(frame_to(255, ControlRequest::Pause).await[2], WIRE.version);
    }

    #[tokio::test]
    async fn ready_waits_for_readiness_and_reports_an_end() {
        let mut client = vmm_that_says(vec![
            VmmMessage::Event(VmmEvent::Phase(Phase::Booting)),
            VmmMessage::Event(VmmEvent::Phase(Phase::Ready)),
            VmmMessage::Event(VmmEvent::Ended(ExitReason::GuestPanic)),
        ])
        .await;
        client.ready().await.unwrap();
        assert!(matches!(client.ready().await, Err(ControlError::Ended(ExitReason::GuestPanic))));
    }

    #[tokio::test(start_paused = true)]
    async fn request_to_a_silent_vmm_times_out() {
        let mut client = vmm_that_says(vec![]).await;
        let error = client.ask(ControlRequest::Stop).await.unwrap_err().to_string();
        assert_eq!(error, "sandbox demo does not answer: its VMM did not answer within 5 s");
    }

    #[tokio::test(start_paused = true)]
    async fn endless_events_are_neither_stored_nor_awaited() {
        let flood = || (0..10_000).map(|_| VmmMessage::Event(VmmEvent::Phase(Phase::Paused)));
        for watches in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let sender = tokio::spawn(async move {
                for message in flood() {
                    if wire::send(&mut theirs, WIRE, &message, MAX_MESSAGE).await.is_err() {
                        return;
                    }
                }
            });
            let mut client = ControlClient { watches, ..ControlClient::over(ours) };
            let error = client.ask(ControlRequest::Pause).await.unwrap_err();
            assert!(matches!(error, ControlError::Wire(WireError::Unexpected(_))), "{error}");
            assert!(client.events.len() <= if watches { MAX_EVENTS } else { 0 });
            drop(client);
            sender.await.unwrap();
        }
    }

    #[tokio::test]
    async fn connection_that_does_not_watch_stores_no_event() {
        let messages = vec![
            VmmMessage::Event(VmmEvent::Phase(Phase::Paused)),
            VmmMessage::Reply(ControlReply::Done),
            VmmMessage::Reply(ControlReply::Done),
            VmmMessage::Event(VmmEvent::Phase(Phase::Ready)),
        ];
        let mut client = ControlClient { watches: false, ..vmm_that_says(messages).await };
        client.ask(ControlRequest::Pause).await.unwrap();
        assert!(client.events.is_empty());
        client.watch().await.unwrap();
        assert_eq!(client.next_event().await.unwrap(), VmmEvent::Phase(Phase::Ready));
    }

    #[tokio::test]
    async fn kernel_identifies_the_sender_and_the_message_stays() {
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let mut client = ControlClient::over_signed(ours).unwrap();
        let mut frame = Vec::new();
        WIRE.append_message(&mut frame, &VmmMessage::Event(VmmEvent::Phase(Phase::Created)), MAX_MESSAGE).unwrap();
        // Sent by another process than the one that made the channel.
        let script = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::os::fd::OwnedFd::from(theirs.try_clone().unwrap()))
            .spawn();
        let mut child = script.unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), &frame).unwrap();
        for _ in 0..2 {
            let sender = client.sender().await.unwrap();
            assert_eq!(sender.pid.as_raw_nonzero().get().unsigned_abs(), child.id());
        }
        assert_eq!(client.next_event().await.unwrap(), VmmEvent::Phase(Phase::Created));
        drop(child.stdin.take());
        child.wait().unwrap();
        std::io::Write::flush(&mut theirs).unwrap();
        drop(theirs);
        assert!(client.sender().await.is_err(), "the channel's end");
    }
}
