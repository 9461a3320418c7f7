//! Connections to the guest agent of a sandbox: through the vsock socket of the VM, one for each
//! request, with a version that is agreed on for each. Everything that comes from the guest is
//! hostile: the wire limits its size, and its text may only be shown to users.

use crate::{
    guest::{
        connection::courier::Use,
        identity::{self, Identity},
        in_use::{InUse, InUseError},
        silence::{Silence, Step, bounded},
    },
    home::directory::{DirectoryError, SandboxDirectory, VSOCK_SOCKET},
    hostile_text::printable,
    limits::kept::Unkept,
    record::SandboxRecord,
    vmm::wire::{self, FrameReader, WireError},
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::{
    agent::{AgentMessage, FailureKind, HostMessage, MAX_AGENT_MESSAGE, MAX_HOST_MESSAGE, PORT, SINCE_LIMITS, WIRE},
    frame::Message,
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::sleep,
};

/// Time between two attempts to connect to a VMM that is slow to accept.
const BACKLOG_POLL: Duration = Duration::from_millis(50);
/// Length of `OK 4294967295\n`.
const MAX_CONNECT_ANSWER: usize = 14;

/// Why the agent did not carry out a request.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The vsock socket of the VM does not accept a connection.
    #[error(transparent)]
    Connect(#[from] DirectoryError),
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// No process in the VM listens for connections.
    #[error("the guest agent does not accept connections")]
    NotListening,
    /// The agent, or the VMM in front of it, does not answer.
    #[error("{0}")]
    Silent(#[from] Silence),
    /// The exchange of frames failed.
    #[error("cannot talk to the guest agent: {0}")]
    Wire(#[from] WireError),
    /// The machine was made with an older agent, which keeps running in it and in all its copies.
    #[error(
        "the guest agent of the sandbox is too old: it speaks wire version {agent}, and version {needed} is needed"
    )]
    TooOld {
        /// The wire version of the agent.
        agent: u8,
        /// The wire version that the request needs.
        needed: u8,
    },
    /// Like [`Self::TooOld`], for limits that the user set explicitly.
    #[error(
        "the guest agent of the sandbox is too old to limit processes and open files: it speaks wire version {agent}, and \
         version {SINCE_LIMITS} is needed"
    )]
    CannotLimit {
        /// The wire version of the agent.
        agent: u8,
    },
    /// The agent answered with a failure.
    #[error("{message}")]
    Refused {
        /// The kind of failure, for programs.
        kind: FailureKind,
        /// The message of the guest, escaped, for users.
        message: String,
    },
}

impl AgentError {
    /// Returns true if the other side closed the connection, and false if it refused the request or
    /// broke the protocol.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        match self {
            Self::Connect(_) | Self::NotListening => true,
            Self::Wire(error) => error.is_disconnect(),
            Self::TooOld { .. } | Self::CannotLimit { .. } | Self::Refused { .. } | Self::Idle(_) | Self::Silent(_) => {
                false
            }
        }
    }
}

/// A connection on which the version is agreed.
#[derive(Debug)]
pub(crate) struct AgentConnection {
    pub(crate) reader: FrameReader<OwnedReadHalf>,
    pub(crate) writer: OwnedWriteHalf,
    /// Keeps the idle rule from pausing the sandbox while the connection is open.
    pub(crate) in_use: Option<Use>,
}

impl AgentConnection {
    /// Connects and sends a request, and returns the agent's first answer to it. With `identity`
    /// the machine receives its identity before that.
    pub(crate) fn request<'a>(
        directory: &'a SandboxDirectory,
        identity: Option<&'a Identity>,
        request: &'a HostMessage,
    ) -> BoxFuture<'a, Result<(Self, AgentMessage), AgentError>> {
        Box::pin(async move {
            let mut connection = Self::open(directory, identity, Some(request)).await?;
            if identity.is_some() {
                identity::is_set(directory)?;
            }
            let first = bounded(directory, Step::answer_to(request), answer(&mut connection.reader)).await??;
            Ok((connection, first))
        })
    }

    /// Sends the machine its identity, unless it has received it since it was restored. Returns
    /// when the agent has answered.
    pub(crate) async fn settle(directory: &SandboxDirectory, record: &SandboxRecord) -> Result<(), AgentError> {
        let Some(identity) = identity::due(directory, record) else { return Ok(()) };
        Self::open(directory, Some(&identity), None).await?;
        Ok(identity::is_set(directory)?)
    }

    /// Connects, agrees on the version, and sets `identity` and its limits; `request` has been sent
    /// by then. An agent that does not support limits is accepted, unless the user set them
    /// explicitly.
    async fn open(
        directory: &SandboxDirectory,
        identity: Option<&Identity>,
        request: Option<&HostMessage>,
    ) -> Result<Self, AgentError> {
        let Some(identity) = identity else { return Self::attempt(directory, None, None, request).await };
        let limits = HostMessage::SetLimits(identity.limits().of_processes());
        match Self::attempt(directory, Some(identity), Some(&limits), request).await {
            Err(AgentError::TooOld { agent, .. }) if agent < SINCE_LIMITS && identity.limits().must_hold => {
                Err(AgentError::CannotLimit { agent })
            }
            Err(AgentError::TooOld { agent, .. }) if agent < SINCE_LIMITS => {
                let connection = Self::attempt(directory, Some(identity), None, request).await?;
                let reason = format!(
                    "the number of its processes is not limited: its guest agent speaks wire version {agent}, which knows \
                     no limits; the snapshot it comes from was made by an older sandboxvm"
                );
                Unkept::Processes.because(directory, &reason)?;
                Ok(connection)
            }
            Ok(connection) => Unkept::Processes.is_kept(directory).map(|()| connection).map_err(AgentError::from),
            refused => refused,
        }
    }

    fn attempt<'a>(
        directory: &'a SandboxDirectory,
        identity: Option<&'a Identity>,
        limits: Option<&'a HostMessage>,
        request: Option<&'a HostMessage>,
    ) -> BoxFuture<'a, Result<Self, AgentError>> {
        Box::pin(async move {
            // A shutdown does not count as use of the sandbox, and must not wait for the supervisor,
            // which may be the one that requests it.
            let in_use = match request {
                Some(HostMessage::Shutdown { .. }) => None,
                _ => InUse::begin(directory).await?.map(Use::Lock),
            };
            let handshake = Self::handshake(directory, identity, limits, request);
            let mut connection = bounded(directory, Step::Handshake, handshake).await??;
            connection.in_use = in_use;
            Ok(connection)
        })
    }

    async fn handshake(
        directory: &SandboxDirectory,
        identity: Option<&Identity>,
        limits: Option<&HostMessage>,
        request: Option<&HostMessage>,
    ) -> Result<Self, AgentError> {
        let (reader, mut writer) = connect(directory, PORT).await?.into_split();
        let mut reader = FrameReader::new(reader, WIRE, MAX_AGENT_MESSAGE);
        // All messages go in one packet: the agent wakes up once, and handles them in order.
        let mut bytes = Vec::new();
        let hello = HostMessage::Hello { oldest: WIRE.oldest, newest: WIRE.version };
        let identity = identity.map(Identity::message).transpose().map_err(WireError::from)?;
        for message in [Some(&hello), identity.as_ref(), limits, request].into_iter().flatten() {
            WIRE.append_message(&mut bytes, message, MAX_HOST_MESSAGE).map_err(WireError::from)?;
        }
        writer.write_all(&bytes).await.map_err(WireError::from)?;
        let needed = [limits, request].into_iter().flatten().map(HostMessage::since).max().unwrap_or(WIRE.oldest);
        match answer(&mut reader).await? {
            // The agent rejects a message that it cannot read by the header of its frame; the
            // messages before that are in force.
            AgentMessage::Hello { version } if (WIRE.oldest..needed).contains(&version) => {
                return Err(AgentError::TooOld { agent: version, needed });
            }
            AgentMessage::Hello { version } if (WIRE.oldest..=WIRE.version).contains(&version) => {}
            AgentMessage::Hello { .. } => return Err(WireError::Unexpected("wire version").into()),
            _ => return Err(WireError::Unexpected("message before Hello").into()),
        }
        if identity.is_some() && answer(&mut reader).await? != AgentMessage::IdentitySet {
            return Err(WireError::Unexpected("answer to its identity").into());
        }
        if limits.is_some() && answer(&mut reader).await? != AgentMessage::LimitsSet {
            return Err(WireError::Unexpected("answer to its limits").into());
        }
        Ok(Self { reader, writer, in_use: None })
    }

    pub(crate) async fn send(writer: &mut OwnedWriteHalf, message: &HostMessage) -> Result<(), WireError> {
        wire::send(writer, WIRE, message, MAX_HOST_MESSAGE).await
    }
}

/// Sends a further request on `connection`, and returns the answer.
pub(crate) async fn ask(
    directory: &SandboxDirectory,
    connection: &mut AgentConnection,
    request: &HostMessage,
) -> Result<AgentMessage, AgentError> {
    let asked = async {
        AgentConnection::send(&mut connection.writer, request).await?;
        answer(&mut connection.reader).await
    };
    bounded(directory, Step::answer_to(request), asked).await?
}

/// Returns the next message, or an error if it is a failure.
async fn answer(reader: &mut FrameReader<OwnedReadHalf>) -> Result<AgentMessage, AgentError> {
    match reader.next_message().await? {
        AgentMessage::Failed(failure) => Err(refused(failure.kind, &failure.message)),
        message => Ok(message),
    }
}

pub(crate) fn refused(kind: FailureKind, message: &str) -> AgentError {
    // On one line: a second line could be taken for a message of sandboxvm.
    AgentError::Refused { kind, message: printable(message).replace('\n', "\\n") }
}

/// Sends `CONNECT <port>\n`, which the VMM answers with `OK <host port>\n`. If it closes the
/// connection without an answer, no process listens on the port.
pub(crate) async fn connect(directory: &SandboxDirectory, port: u32) -> Result<UnixStream, AgentError> {
    let mut stream = loop {
        match directory.connect(VSOCK_SOCKET).await {
            // The backlog of the socket is full. The time limit of the caller ends these attempts.
            Err(error) if error.is_would_block() => sleep(BACKLOG_POLL).await,
            connected => break connected?,
        }
    };
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(WireError::from)?;
    let mut line = Vec::with_capacity(MAX_CONNECT_ANSWER);
    while line.last() != Some(&b'\n') {
        if line.len() == MAX_CONNECT_ANSWER {
            return Err(WireError::Unexpected("answer to CONNECT").into());
        }
        // Byte by byte, because the bytes after the line belong to the agent.
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(AgentError::NotListening),
            Err(error) => return Err(WireError::Io(error).into()),
        }
    }
    if line.starts_with(b"OK ") { Ok(stream) } else { Err(WireError::Unexpected("answer to CONNECT").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{limits::kept::unkept, record::tests::example};
    use sandboxvm_protocol::frame::{FrameDecoder, Wire};
    use tokio::net::UnixListener;

    /// An agent of wire version 2, as a snapshot may contain: it closes a connection when it
    /// receives a newer message.
    async fn old_agent(listener: UnixListener) {
        let wire = Wire { version: 2, ..WIRE };
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut connect = [0; 13];
            socket.read_exact(&mut connect).await.unwrap();
            socket.write_all(b"OK 1\n").await.unwrap();
            let mut said = vec![0; 4096];
            let count = socket.read(&mut said).await.unwrap();
            let mut decoder = FrameDecoder::new(wire, MAX_HOST_MESSAGE);
            decoder.push(&said[..count]);
            let mut answers = Vec::new();
            while let Ok(Some(frame)) = decoder.next_frame() {
                let answer = match wire.decode_message(frame.body).unwrap() {
                    HostMessage::Hello { .. } => AgentMessage::Hello { version: 2 },
                    HostMessage::SetIdentity(_) => AgentMessage::IdentitySet,
                    _ => AgentMessage::Pong,
                };
                wire.append_message(&mut answers, &answer, MAX_AGENT_MESSAGE).unwrap();
            }
            socket.write_all(&answers).await.unwrap();
        }
    }

    #[tokio::test]
    async fn agent_without_limits_is_accepted_unless_limits_are_explicit() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let listener = directory.listen(VSOCK_SOCKET).unwrap();
        listener.set_nonblocking(true).unwrap();
        let agent = tokio::spawn(old_agent(UnixListener::from_std(listener).unwrap()));
        let mut record = example("abcdefgh");
        let request = |record: &SandboxRecord| {
            let identity = Identity::of(record);
            let directory = &directory;
            async move { AgentConnection::request(directory, Some(&identity), &HostMessage::Ping).await }
        };
        let (_, answer) = request(&record).await.unwrap();
        assert_eq!(answer, AgentMessage::Pong);
        let unkept = unkept(&directory);
        assert!(unkept.len() == 1 && unkept[0].contains("wire version 2"), "{unkept:?}");
        record.limits.must_hold = true;
        assert!(matches!(request(&record).await, Err(AgentError::CannotLimit { agent: 2 })));
        agent.abort();
    }
}
