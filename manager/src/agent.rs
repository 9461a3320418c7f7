//! Connections to a sandbox's guest agent: through the VM's vsock socket, one per request, versions agreed on each.
//! Everything that comes from the guest is hostile: it is capped by the wire, and its text is for people only.

use crate::{
    directory::{DirectoryError, SandboxDirectory, VSOCK_SOCKET},
    hostile_text::printable,
    identity::{self, Identity},
    in_use::{InUse, InUseError},
    limits::Unkept,
    silence::{Silence, Step, bounded},
    wire::{self, FrameReader, WireError},
};
use sandboxvm_protocol::{
    agent::{
        AgentMessage, ExitStatus, FailureKind, HostMessage, MAX_AGENT_MESSAGE, MAX_HOST_MESSAGE, PORT, SINCE_LIMITS,
        WIRE,
    },
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

/// Between two attempts to connect to a VMM that is slow to accept.
const BACKLOG_POLL: Duration = Duration::from_millis(50);
/// `OK 4294967295\n`.
const MAX_CONNECT_ANSWER: usize = 14;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The VM's vsock socket does not answer.
    #[error(transparent)]
    Connect(#[from] DirectoryError),
    /// It was paused because nobody used it, and does not go on.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// The VM has nobody to connect to.
    #[error("the guest agent does not accept connections")]
    NotListening,
    /// It, or the VMM before it, says nothing.
    #[error("{0}")]
    Silent(#[from] Silence),
    /// The conversation failed.
    #[error("cannot talk to the guest agent: {0}")]
    Wire(#[from] WireError),
    /// The machine was made with an older agent, which goes on in it and in all that comes of it.
    #[error(
        "the guest agent of the sandbox is too old: it speaks wire version {agent}, and version {needed} is needed"
    )]
    TooOld {
        /// What the agent speaks.
        agent: u8,
        /// What the request needs.
        needed: u8,
    },
    /// As [`Self::TooOld`], of limits that were asked for.
    #[error(
        "the guest agent of the sandbox is too old to limit processes and open files: it speaks wire version {agent}, and \
         version {SINCE_LIMITS} is needed"
    )]
    CannotLimit {
        /// What the agent speaks.
        agent: u8,
    },
    /// The agent answered that it cannot.
    #[error("{message}")]
    Refused {
        /// For programs.
        kind: FailureKind,
        /// For people, from the guest, escaped.
        message: String,
    },
}

impl AgentError {
    /// True when the other side went away, as against refused or misbehaved.
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
}

impl AgentConnection {
    /// Connects and makes a request; returns with the agent's first answer to it. With `identity` the machine is told
    /// who it is first.
    pub(crate) async fn request(
        directory: &SandboxDirectory,
        identity: Option<&Identity>,
        request: &HostMessage,
    ) -> Result<(Self, AgentMessage), AgentError> {
        let mut connection = Self::open(directory, identity, Some(request)).await?;
        if identity.is_some() {
            identity::is_set(directory)?;
        }
        let first = bounded(directory, Step::answer_to(request), answer(&mut connection.reader)).await??;
        Ok((connection, first))
    }

    /// Tells the machine who it is.
    pub(crate) async fn tell(directory: &SandboxDirectory, identity: &Identity) -> Result<(), AgentError> {
        Self::open(directory, Some(identity), None).await.map(drop)
    }

    /// Connects, agrees on the version and has `identity` and its limits put in force; `request` is on its way by then. An
    /// agent that knows no limits goes on without, if none were asked for.
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

    async fn attempt(
        directory: &SandboxDirectory,
        identity: Option<&Identity>,
        limits: Option<&HostMessage>,
        request: Option<&HostMessage>,
    ) -> Result<Self, AgentError> {
        // Ending it is no use of it, and must not wait for its supervisor, which may be who ends it.
        let in_use = match request {
            Some(HostMessage::Shutdown { .. }) => None,
            _ => InUse::begin(directory).await?,
        };
        let handshake = Self::handshake(directory, identity, limits, request);
        let mut connection = bounded(directory, Step::Handshake, handshake).await??;
        connection.reader.keep_in_use(in_use);
        Ok(connection)
    }

    async fn handshake(
        directory: &SandboxDirectory,
        identity: Option<&Identity>,
        limits: Option<&HostMessage>,
        request: Option<&HostMessage>,
    ) -> Result<Self, AgentError> {
        let (reader, mut writer) = connect(directory).await?.into_split();
        let mut reader = FrameReader::new(reader, WIRE, MAX_AGENT_MESSAGE);
        // All in one packet: the agent wakes once, and handles them in order.
        let mut bytes = Vec::new();
        let hello = HostMessage::Hello { oldest: WIRE.oldest, newest: WIRE.version };
        let identity = identity.map(Identity::message).transpose().map_err(WireError::from)?;
        for message in [Some(&hello), identity.as_ref(), limits, request].into_iter().flatten() {
            WIRE.append_message(&mut bytes, message, MAX_HOST_MESSAGE).map_err(WireError::from)?;
        }
        writer.write_all(&bytes).await.map_err(WireError::from)?;
        let needed = [limits, request].into_iter().flatten().map(HostMessage::since).max().unwrap_or(WIRE.oldest);
        match answer(&mut reader).await? {
            // What it cannot read it refuses by its frame's header; what was said before that is in force.
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
        Ok(Self { reader, writer })
    }

    pub(crate) async fn send(writer: &mut OwnedWriteHalf, message: &HostMessage) -> Result<(), WireError> {
        wire::send(writer, WIRE, message, MAX_HOST_MESSAGE).await
    }
}

/// The answer to a further request on `connection`.
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

/// The next message, with a refusal turned into an error.
async fn answer(reader: &mut FrameReader<OwnedReadHalf>) -> Result<AgentMessage, AgentError> {
    match reader.next_message().await? {
        AgentMessage::Failed(failure) => Err(refused(failure.kind, &failure.message)),
        message => Ok(message),
    }
}

pub(crate) fn refused(kind: FailureKind, message: &str) -> AgentError {
    // One line: a second one could be taken for ours.
    AgentError::Refused { kind, message: printable(message).replace('\n', "\\n") }
}

/// The shell's exit code for `status`: its own, 128 + signal, 124.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    match status {
        ExitStatus::Code(code) => code,
        ExitStatus::Signal(signal) => 128 + signal.get(),
        ExitStatus::TimedOut => 124,
    }
}

/// `CONNECT <port>\n`, answered by `OK <host port>\n`; without an answer nobody listens.
async fn connect(directory: &SandboxDirectory) -> Result<UnixStream, AgentError> {
    let mut stream = loop {
        match directory.connect(VSOCK_SOCKET).await {
            // So many wait to be accepted that no more may: the caller's bound ends this.
            Err(error) if error.is_would_block() => sleep(BACKLOG_POLL).await,
            connected => break connected?,
        }
    };
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await.map_err(WireError::from)?;
    let mut line = Vec::with_capacity(MAX_CONNECT_ANSWER);
    while line.last() != Some(&b'\n') {
        if line.len() == MAX_CONNECT_ANSWER {
            return Err(WireError::Unexpected("answer to CONNECT").into());
        }
        // Byte by byte: what follows the line belongs to the agent.
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
    use crate::{
        limits::unkept,
        record::{SandboxRecord, tests::example},
    };
    use sandboxvm_protocol::frame::{FrameDecoder, Wire};
    use tokio::net::UnixListener;

    /// An agent of wire version 2, as a snapshot may hold: it closes a connection on which it is told something newer.
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
    async fn an_agent_that_knows_no_limits_goes_on_without_unless_they_were_asked_for() {
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
