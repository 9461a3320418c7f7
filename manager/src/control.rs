//! Talking to a VMM over its control socket: one request, one reply, events in between when asked for. A VMM that does
//! not answer in time counts as one that cannot: no caller waits for ever.

use crate::{
    directory::{CONTROL_SOCKET, DirectoryError, SandboxDirectory},
    hostile_text::{one_line, shown},
    launch::{self, LaunchError, LaunchFiles},
    state::State,
    wire::{self, FrameReader, WireError},
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, UCred, recvmsg, sockopt::set_socket_passcred};
use sandboxvm_protocol::{
    frame::Message,
    vmm::{
        ControlReply, ControlRequest, ExitReason, MAX_MESSAGE, Phase, Timeline, VmStats, VmmEvent, VmmMessage, WIRE,
    },
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

/// A VMM answers from its event loop in well under a millisecond; this is for a host that swaps.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A machine boots, is paused and resumed by hand, and ends: far fewer come between a request and its reply.
const MAX_EVENTS: usize = 64;

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no VMM.
    #[error("sandbox {sandbox} is {state}")]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: State,
    },
    /// Its socket does not answer.
    #[error(transparent)]
    Connect(#[from] DirectoryError),
    /// The conversation failed.
    #[error("cannot talk to the VMM: {0}")]
    Wire(#[from] WireError),
    /// The request did not get through.
    #[error("{0}")]
    Send(#[from] LaunchError),
    /// It did not do what takes longer in time.
    #[error("the VMM did not finish within {} s", .0.as_secs())]
    Unfinished(Duration),
    /// No answer in time.
    #[error("{}its VMM did not answer within {} s", does_not_answer(.0.as_deref()), ANSWER_WITHIN.as_secs())]
    Silent(
        /// The sandbox's name, else its ID; not known of one that is being made.
        Option<String>,
    ),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// The machine ended instead.
    #[error("{0}")]
    Ended(ExitReason),
}

fn does_not_answer(sandbox: Option<&str>) -> String {
    sandbox.map_or_else(String::new, |sandbox| format!("sandbox {sandbox} does not answer: "))
}

/// A connection to a VMM's control socket.
#[derive(Debug)]
pub(crate) struct ControlClient {
    /// The sandbox's name, else its ID.
    sandbox: Option<String>,
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Came while a reply was awaited; empty unless it watches.
    events: VecDeque<VmmEvent>,
    watches: bool,
}

impl ControlClient {
    pub(crate) async fn connect(directory: &SandboxDirectory) -> Result<Self, ControlError> {
        // Its directory is called by its ID.
        let id = directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        match directory.connect(CONTROL_SOCKET).await {
            Ok(stream) => Ok(Self { watches: false, ..Self::over(stream).called(id) }),
            // So many wait to be accepted that no more may.
            Err(error) if error.is_would_block() => Err(ControlError::Silent(Some(id))),
            Err(error) => Err(error.into()),
        }
    }

    /// Speaks over a stream that is connected already: the launch channel, which watches from its beginning.
    pub(crate) fn over(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let reader = FrameReader::new(reader, WIRE, MAX_MESSAGE);
        Self { sandbox: None, reader, writer, events: VecDeque::new(), watches: true }
    }

    /// As [`Self::over`], for a channel on which [`Self::sender`] is to be asked for.
    pub(crate) fn over_signed(stream: StdUnixStream) -> io::Result<Self> {
        set_socket_passcred(&stream, true)?;
        stream.set_nonblocking(true)?;
        Ok(Self::over(UnixStream::from_std(stream)?))
    }

    /// Which process sent what comes next, as the kernel says: no sender can name another. Takes nothing off the channel.
    /// Cancel safe.
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

    /// Asks for events from here on.
    pub(crate) async fn watch(&mut self) -> Result<(), ControlError> {
        self.watches = true;
        self.ask(ControlRequest::Watch).await
    }

    /// Calls the sandbox this in what goes wrong.
    pub(crate) fn called(mut self, sandbox: String) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    /// Asks for something that is answered with Done.
    pub(crate) async fn ask(&mut self, request: ControlRequest) -> Result<(), ControlError> {
        match self.request(&request).await? {
            ControlReply::Done => Ok(()),
            ControlReply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(WireError::Unexpected("another request's reply").into()),
        }
    }

    pub(crate) async fn stats(&mut self) -> Result<VmStats, ControlError> {
        match self.request(&ControlRequest::Stats).await? {
            ControlReply::Stats(stats) => Ok(*stats),
            ControlReply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(WireError::Unexpected("reply without statistics").into()),
        }
    }

    pub(crate) async fn timeline(&mut self) -> Result<Timeline, ControlError> {
        match self.request(&ControlRequest::Timeline).await? {
            ControlReply::Timeline(timeline) => Ok(timeline),
            ControlReply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(WireError::Unexpected("reply without a timeline").into()),
        }
    }

    async fn request(&mut self, request: &ControlRequest) -> Result<ControlReply, ControlError> {
        let answer = async {
            wire::send(&mut self.writer, WIRE, request, MAX_MESSAGE).await?;
            self.reply().await
        };
        timeout(ANSWER_WITHIN, answer).await.map_err(|_| ControlError::Silent(self.sandbox.clone()))?
    }

    /// Asks for something with files; takes `within` at most. Nothing may be under way on this connection.
    pub(crate) async fn request_with(
        &mut self,
        request: &ControlRequest,
        files: &LaunchFiles<'_>,
        within: Duration,
    ) -> Result<ControlReply, ControlError> {
        self.send_with(request, files)?;
        timeout(within, self.reply()).await.map_err(|_| ControlError::Unfinished(within))?
    }

    /// Sends a message with files in one go. Nothing may be under way on this connection.
    pub(crate) fn send_with(&self, message: &impl Message, files: &LaunchFiles<'_>) -> Result<(), LaunchError> {
        launch::send(self.writer.as_ref(), message, files)
    }

    /// A VMM that was taken over may send events for as long as a reply is awaited: so only those that were asked for are
    /// kept, and of those no more than a machine has.
    async fn reply(&mut self) -> Result<ControlReply, ControlError> {
        for _ in 0..=MAX_EVENTS {
            match self.next_message().await? {
                VmmMessage::Reply(ControlReply::Failed { message }) => {
                    return Ok(ControlReply::Failed { message: one_line(&message) });
                }
                VmmMessage::Reply(reply) => return Ok(reply),
                VmmMessage::Event(event) if self.watches && self.events.len() < MAX_EVENTS => {
                    self.events.push_back(event);
                }
                VmmMessage::Event(_) => {}
            }
        }
        Err(WireError::Unexpected("more events than one machine has in its life").into())
    }

    /// What the VMM says next, made safe to show where it is text.
    async fn next_message(&mut self) -> Result<VmmMessage, WireError> {
        Ok(match self.reader.next_message().await? {
            VmmMessage::Event(VmmEvent::Ended(reason)) => VmmMessage::Event(VmmEvent::Ended(shown(reason))),
            message => message,
        })
    }

    /// The next event; for connections that watch. Cancel safe.
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

    /// Waits for the agent to listen; for connections that watch. Cancel safe.
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

/// `None` at the channel's end.
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
    async fn events_between_replies_are_passed_over() {
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
    async fn words_of_a_vmm_drive_no_terminal_and_are_one_line() {
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
    async fn readiness_is_awaited_and_an_end_is_not_mistaken_for_it() {
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
    async fn a_vmm_that_says_nothing_is_given_up() {
        let mut client = vmm_that_says(vec![]).await;
        let error = client.ask(ControlRequest::Stop).await.unwrap_err().to_string();
        assert_eq!(error, "sandbox demo does not answer: its VMM did not answer within 5 s");
    }

    #[tokio::test(start_paused = true)]
    async fn events_without_end_are_neither_kept_nor_waited_through() {
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
    async fn a_connection_that_did_not_ask_to_watch_keeps_no_event() {
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
    async fn a_sender_is_named_by_the_kernel_and_its_message_stays() {
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let mut client = ControlClient::over_signed(ours).unwrap();
        let mut frame = Vec::new();
        WIRE.append_message(&mut frame, &VmmMessage::Event(VmmEvent::Phase(Phase::Created)), MAX_MESSAGE).unwrap();
        // Another process than that which made the channel.
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
