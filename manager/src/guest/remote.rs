//! Requests to the agent of a sandbox from a process that may not open the sandbox's directory.
//!
//! ```text
//! RemoteSandbox ── Call ──> Courier ══ another process ══> Sandbox::answer ── connects, logs, sends ──> agent
//!       └──────────── the connection itself, as a descriptor, and the first answer ────────────┘
//! ```
//! The process with the directory sends every request itself: the other one receives a connection
//! on which its request has been sent and logged. What the process then writes and reads does not
//! pass through this process again. Calls come from a process that may have been taken over:
//! [`Sandbox::answer`] accepts only what its [`GuestScope`] allows.

use crate::{
    audit::Event,
    guest::{
        access::{Access, EndLog},
        agent::{AgentConnection, AgentError},
        attach_spec::AttachSpec,
        courier::{Call, Carried, Courier, Reaching, Use},
        error::{ExecError, FailureClass},
        exec::Exec,
        files::Files,
        in_use::InUse,
        ports::PortStream,
        process_spec::ProcessSpec,
        processes::{self, ProcessSummary},
        silence::{FIRST_LOOK, Silence, Step},
    },
    sandbox::Sandbox,
    vmm::wire::{FrameReader, WireError},
};
use sandboxvm_protocol::agent::{
    AgentMessage, FailureKind, HostMessage, MAX_AGENT_MESSAGE, SignalNumber, WIRE,
    files::FileOperation,
    port::{PortNumber, PortRequest},
    process::ProcessInfo,
};
use serde::{Deserialize, Serialize};
use std::{future::pending, os::fd::OwnedFd, os::unix::net::UnixStream as StdStream, sync::Arc};
use tokio::{net::UnixStream, time::sleep};

/// What [`Sandbox::answer`] returns for a call.
#[derive(Debug)]
pub struct Answered {
    /// For the caller.
    pub answer: Vec<u8>,
    /// A connection to the agent, for the caller.
    pub stream: Option<OwnedFd>,
    /// To be kept as long as the caller may use the connection.
    pub in_use: Option<InUseElsewhere>,
}

/// Keeps the idle rule from pausing a sandbox while another process uses it.
#[derive(Debug)]
#[expect(dead_code, reason = "it matters when it is dropped")]
pub struct InUseElsewhere(InUse);

/// What the caller of [`Sandbox::answer`] may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestScope {
    /// Run processes, and use files.
    All,
    /// Read files.
    ReadFiles,
    /// Write files.
    WriteFiles,
    /// Connect to this port.
    Port(PortNumber),
}

impl GuestScope {
    fn allows(self, request: &HostMessage) -> bool {
        use FileOperation::{Describe, Read, SetOwner, Stat, Write, WriteWithMetadata};
        match (self, request) {
            (Self::All, HostMessage::Exec(_) | HostMessage::Attach(_) | HostMessage::SignalProcess { .. }) => true,
            (Self::All, HostMessage::Files(_)) => true,
            (Self::ReadFiles, HostMessage::Files(request)) => {
                matches!(request.operation, Read { .. } | Stat { .. } | Describe { .. })
            }
            (Self::WriteFiles, HostMessage::Files(request)) => matches!(
                request.operation,
                Write { .. } | WriteWithMetadata { .. } | Stat { .. } | Describe { .. } | SetOwner { .. }
            ),
            (Self::Port(port), HostMessage::Connect(request)) => request.port == port,
            _ => false,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Comes with a connection. `early` arrived on it after the first answer.
    Begun {
        first: AgentMessage,
        early: Vec<u8>,
    },
    Processes(Vec<ProcessInfo>),
    Silence(Silence),
    Failed(Conveyed),
    /// Nothing happened to the sandbox.
    Unexplained,
}

/// An [`ExecError`] on its way, with everything that callers distinguish.
#[derive(Debug, Serialize, Deserialize)]
enum Conveyed {
    Refused { kind: FailureKind, message: String },
    TooOld { agent: u8, needed: u8 },
    CannotLimit { agent: u8 },
    NotListening,
    Other { class: FailureClass, ended: bool, message: String },
}

impl From<ExecError> for Conveyed {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Agent(AgentError::Refused { kind, message }) => Self::Refused { kind, message },
            ExecError::Agent(AgentError::TooOld { agent, needed }) => Self::TooOld { agent, needed },
            ExecError::Agent(AgentError::CannotLimit { agent }) => Self::CannotLimit { agent },
            ExecError::Agent(AgentError::NotListening) => Self::NotListening,
            error => {
                Self::Other { class: error.class(), ended: error.is_of_an_ended_sandbox(), message: error.to_string() }
            }
        }
    }
}

impl From<Conveyed> for ExecError {
    fn from(conveyed: Conveyed) -> Self {
        match conveyed {
            Conveyed::Refused { kind, message } => Self::Agent(AgentError::Refused { kind, message }),
            Conveyed::TooOld { agent, needed } => Self::Agent(AgentError::TooOld { agent, needed }),
            Conveyed::CannotLimit { agent } => Self::Agent(AgentError::CannotLimit { agent }),
            Conveyed::NotListening => Self::Agent(AgentError::NotListening),
            Conveyed::Other { class, ended, message } => Self::Reported { class, ended, message },
        }
    }
}

fn encoded(call: &Call) -> Result<Vec<u8>, ExecError> {
    postcard::to_stdvec(call).map_err(|error| elsewhere(format!("cannot encode a request: {error}")))
}

fn elsewhere(message: String) -> ExecError {
    ExecError::Reported { class: FailureClass::Unavailable, ended: false, message }
}

impl Sandbox {
    /// Does what a call of another process asks for, within `scope`. The call may be any bytes.
    /// Dropping the future cancels it.
    pub async fn answer(&self, call: &[u8], scope: GuestScope) -> Answered {
        let (answer, stream, in_use) = match self.answer_to(call, scope).await {
            Ok((answer, Some((stream, in_use)))) => (answer, Some(stream), in_use.map(InUseElsewhere)),
            Ok((answer, None)) => (answer, None, None),
            Err(error) => (Answer::Failed(error.into()), None, None),
        };
        // Its parts were decoded from bounded frames, and an empty answer is an error for its reader.
        Answered { answer: postcard::to_stdvec(&answer).unwrap_or_default(), stream, in_use }
    }

    async fn answer_to(
        &self,
        call: &[u8],
        scope: GuestScope,
    ) -> Result<(Answer, Option<(OwnedFd, Option<InUse>)>), ExecError> {
        let invalid = |message: &str| ExecError::Reported {
            class: FailureClass::Invalid,
            ended: false,
            message: message.to_owned(),
        };
        let call = postcard::from_bytes(call).map_err(|_| invalid("the request to the sandbox is malformed"))?;
        let is_of_processes = matches!(call, Call::Processes | Call::Ended { .. } | Call::LimitsHit(_));
        if is_of_processes && scope != GuestScope::All {
            return Err(invalid("the request to the sandbox is not allowed"));
        }
        match call {
            Call::Request(request) if !scope.allows(&request) => {
                Err(invalid("the request to the sandbox is not allowed"))
            }
            Call::Request(request) => {
                let (connection, first) = self.send(request).await?;
                let AgentConnection { reader, writer, in_use } = connection;
                let (reader, early) = reader.into_parts();
                let failed = |error: std::io::Error| ExecError::from(WireError::Io(error));
                let stream = reader.reunite(writer).map_err(|error| failed(std::io::Error::other(error)))?;
                let stream = OwnedFd::from(stream.into_std().map_err(failed)?);
                let in_use = in_use.and_then(|in_use| match in_use {
                    Use::Lock(lock) => Some(lock),
                    Use::Lease(_) => None,
                });
                Ok((Answer::Begun { first, early }, Some((stream, in_use))))
            }
            Call::Processes => Ok((Answer::Processes(Access::processes(self).await?), None)),
            Call::Silence(step) => Ok((Answer::Silence(Access::silence(self, step).await), None)),
            Call::Explain(silence) => {
                let error = silence.map_or(AgentError::Wire(WireError::Closed), AgentError::Silent);
                match self.explain(error).await {
                    ExecError::Agent(_) => Ok((Answer::Unexplained, None)),
                    explained => Err(explained),
                }
            }
            Call::Ended { pid, status } => {
                self.trail().note(Event::ended(pid, status));
                Ok((Answer::Unexplained, None))
            }
            Call::LimitsHit(hit) => {
                self.trail().note(Event::limits_hit(hit));
                Ok((Answer::Unexplained, None))
            }
        }
    }
}

/// A sandbox of another process, as far as its guest is concerned.
#[derive(Debug, Clone)]
pub struct RemoteSandbox {
    courier: Arc<dyn Courier>,
}

impl RemoteSandbox {
    /// Returns the sandbox to which the courier carries calls.
    #[must_use]
    pub fn new(courier: Arc<dyn Courier>) -> Self {
        Self { courier }
    }

    /// See [`Sandbox::exec`].
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn exec(&self, spec: ProcessSpec) -> Result<Exec, ExecError> {
        Exec::start(self, spec).await
    }

    /// See [`Sandbox::attach`].
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn attach(&self, spec: AttachSpec) -> Result<Exec, ExecError> {
        Exec::attach(self, spec).await
    }

    /// See [`Sandbox::processes`].
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn processes(&self) -> Result<Vec<ProcessSummary>, ExecError> {
        Ok(Access::processes(self).await?.into_iter().map(ProcessSummary::from).collect())
    }

    /// See [`Sandbox::signal`].
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn signal(&self, pid: u32, signal: SignalNumber) -> Result<(), ExecError> {
        processes::signal(self, pid, signal).await
    }

    /// See [`Sandbox::connect`].
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn connect(&self, port: PortNumber) -> Result<PortStream, ExecError> {
        PortStream::open(self, PortRequest { port }).await
    }

    /// See [`Sandbox::files`].
    #[must_use]
    pub fn files(&self) -> Files<'_> {
        Files::of(self)
    }

    /// See [`Sandbox::explain`].
    pub async fn explain(&self, error: AgentError) -> ExecError {
        self.explained(error).await
    }

    async fn call(&self, call: Call) -> Result<(Answer, Option<OwnedFd>), ExecError> {
        let Carried { answer, stream } = self.courier.carry(encoded(&call)?).await.map_err(elsewhere)?;
        match postcard::from_bytes(&answer) {
            Ok(Answer::Failed(error)) => Err(error.into()),
            Ok(answer) => Ok((answer, stream)),
            Err(_) => Err(elsewhere("the answer about the sandbox is malformed".to_owned())),
        }
    }
}

fn unexpected() -> ExecError {
    elsewhere("the answer about the sandbox is not the expected one".to_owned())
}

impl Access for RemoteSandbox {
    fn request(&self, request: HostMessage) -> Reaching<'_, Result<(AgentConnection, AgentMessage), ExecError>> {
        Box::pin(async move {
            let (Answer::Begun { first, early }, Some(stream)) = self.call(Call::Request(request)).await? else {
                return Err(unexpected());
            };
            let stream = StdStream::from(stream);
            let opened = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
            let (reader, writer) = opened.map_err(WireError::Io)?.into_split();
            let reader = FrameReader::resumed(reader, WIRE, MAX_AGENT_MESSAGE, &early);
            let in_use = Some(Use::Lease(Arc::clone(&self.courier)));
            Ok((AgentConnection { reader, writer, in_use }, first))
        })
    }

    fn processes(&self) -> Reaching<'_, Result<Vec<ProcessInfo>, ExecError>> {
        Box::pin(async {
            match self.call(Call::Processes).await?.0 {
                Answer::Processes(processes) => Ok(processes),
                _ => Err(unexpected()),
            }
        })
    }

    fn explained(&self, error: AgentError) -> Reaching<'_, ExecError> {
        Box::pin(async move {
            let silence = if let AgentError::Silent(silence) = error { Some(silence) } else { None };
            if silence.is_none() && !error.is_disconnect() {
                return error.into();
            }
            self.call(Call::Explain(silence)).await.err().unwrap_or_else(|| error.into())
        })
    }

    fn silence(&self, step: Step) -> Reaching<'_, Silence> {
        Box::pin(async move {
            // Most answers come before: they cost no call.
            sleep(FIRST_LOOK).await;
            match self.call(Call::Silence(step)).await {
                Ok((Answer::Silence(silence), _)) => silence,
                // The other process ends, and this one with it.
                _ => pending().await,
            }
        })
    }

    fn end_log(&self, pid: u32) -> EndLog {
        EndLog::Remote(Arc::clone(&self.courier), pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{home::directory::VSOCK_SOCKET, manager::tests::manager_with};
    use sandboxvm_protocol::{
        agent::{
            CText, MAX_HOST_MESSAGE,
            files::{FilePath, FileRequest},
        },
        frame::FrameDecoder,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    fn files(operation: FileOperation) -> HostMessage {
        HostMessage::Files(FileRequest { user: None, operation })
    }

    fn path() -> FilePath {
        FilePath::try_from("/a").unwrap()
    }

    #[test]
    fn a_scope_allows_its_requests_alone() {
        let port = |port| PortNumber::try_from(port).unwrap();
        let connect = |number| HostMessage::Connect(PortRequest { port: port(number) });
        let read = || files(FileOperation::Read { path: path() });
        let write = || files(FileOperation::Write { path: path(), mode: None, parents: true });
        let remove = || files(FileOperation::Remove { path: path(), recursive: true });
        let signal = || HostMessage::SignalProcess { pid: 1, signal: SignalNumber::KILL };
        for (scope, allowed, denied) in [
            (GuestScope::All, vec![read(), write(), remove(), signal()], vec![connect(80)]),
            (GuestScope::ReadFiles, vec![read()], vec![write(), remove(), signal(), connect(80)]),
            (GuestScope::WriteFiles, vec![write()], vec![read(), remove(), signal(), connect(80)]),
            (GuestScope::Port(port(80)), vec![connect(80)], vec![connect(81), read(), signal()]),
        ] {
            assert!(allowed.iter().all(|request| scope.allows(request)), "{scope:?}");
            assert!(!denied.iter().any(|request| scope.allows(request)), "{scope:?}");
            // What changes a machine is the manager's alone.
            for own in [HostMessage::Shutdown { grace_ms: 0 }, HostMessage::Ping, HostMessage::StdinEof] {
                assert!(!scope.allows(&own), "{scope:?} {own:?}");
            }
        }
    }

    #[tokio::test]
    async fn any_bytes_are_answered_and_reach_no_guest() {
        let (_dir, manager) = manager_with(&["abcdefgh"]);
        let sandbox = manager.find("abcdefgh").unwrap();
        let listener = UnixListener::bind(sandbox.directory.path().join(VSOCK_SOCKET)).unwrap();
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        for length in 0..200 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                word.to_le_bytes()[0]
            })
            .take(length)
            .collect();
            let answered = sandbox.answer(&bytes, GuestScope::Port(PortNumber::try_from(80).unwrap())).await;
            assert!(answered.stream.is_none() && !answered.answer.is_empty());
        }
        let accepted = tokio::time::timeout(std::time::Duration::from_millis(20), listener.accept()).await;
        assert!(accepted.is_err(), "no call of another scope is sent to the guest");
        let log = std::fs::read_to_string(sandbox.trail().path()).unwrap_or_default();
        assert_eq!(log, "");
    }

    /// Carries calls to a sandbox of this process.
    #[derive(Debug)]
    struct Near(Sandbox);

    impl Courier for Near {
        fn carry(&self, call: Vec<u8>) -> Reaching<'_, Result<Carried, String>> {
            Box::pin(async move {
                let answered = self.0.answer(&call, GuestScope::All).await;
                Ok(Carried { answer: answered.answer, stream: answered.stream })
            })
        }

        fn tell(&self, _: Vec<u8>) {}
    }

    /// Answers Hello and one request, and sends what follows it at the same time.
    async fn guest(listener: UnixListener, answer: AgentMessage, rest: Vec<u8>) -> Vec<HostMessage> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 4096];
        stream.read_exact(&mut asked[.."CONNECT 1024\n".len()]).await.unwrap();
        stream.write_all(b"OK 1\n").await.unwrap();
        let (mut decoder, mut received) = (FrameDecoder::new(WIRE, MAX_HOST_MESSAGE), Vec::new());
        while received.len() < 2 {
            let count = stream.read(&mut asked).await.unwrap();
            decoder.push(&asked[..count]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                received.push(WIRE.decode_message(frame.body).unwrap());
            }
        }
        let mut bytes = Vec::new();
        for message in [AgentMessage::Hello { version: WIRE.version }, answer] {
            WIRE.append_message(&mut bytes, &message, MAX_AGENT_MESSAGE).unwrap();
        }
        bytes.extend(rest);
        stream.write_all(&bytes).await.unwrap();
        received
    }

    #[tokio::test]
    async fn a_request_is_sent_here_and_its_connection_is_read_there() {
        let (_dir, manager) = manager_with(&["abcdefgh"]);
        let sandbox = manager.find("abcdefgh").unwrap();
        let directory = sandbox.directory.path().to_owned();
        let listener = UnixListener::bind(directory.join(VSOCK_SOCKET)).unwrap();
        let answer = AgentMessage::Failed(sandboxvm_protocol::agent::Failure {
            kind: FailureKind::NoSuchUser,
            message: "no such user".to_owned(),
        });
        let guest = tokio::spawn(guest(listener, answer, b"rest".to_vec()));
        // Without a VMM that holds its lock, the sandbox is not running: the agent is asked directly.
        let request = files(FileOperation::Read { path: path() });
        let asked = AgentConnection::request(&sandbox.directory, None, &request).await;
        let conveyed = Conveyed::from(ExecError::from(asked.unwrap_err()));
        let bytes = postcard::to_stdvec(&conveyed).unwrap();
        let error = ExecError::from(postcard::from_bytes::<Conveyed>(&bytes).unwrap());
        assert!(
            matches!(error, ExecError::Agent(AgentError::Refused { kind: FailureKind::NoSuchUser, .. })),
            "{error:?}"
        );
        assert_eq!(guest.await.unwrap()[1], request);
        let remote = RemoteSandbox::new(Arc::new(Near(sandbox)));
        let user = CText::try_from("user").unwrap();
        let error = remote.files().as_user(user).stat(path(), true).await.unwrap_err().to_string();
        assert!(error.contains("not running") || error.contains("dead"), "{error}");
    }

    #[tokio::test]
    async fn early_bytes_are_read_before_those_of_the_stream() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let message = |message: &AgentMessage| {
            let mut bytes = Vec::new();
            WIRE.append_message(&mut bytes, message, MAX_AGENT_MESSAGE).unwrap();
            bytes
        };
        let (early, late) = (message(&AgentMessage::Pong), message(&AgentMessage::Connected));
        theirs.write_all(&late).await.unwrap();
        let mut reader = FrameReader::resumed(ours, WIRE, MAX_AGENT_MESSAGE, &early);
        assert_eq!(reader.next_message::<AgentMessage>().await.unwrap(), AgentMessage::Pong);
        assert_eq!(reader.next_message::<AgentMessage>().await.unwrap(), AgentMessage::Connected);
    }
}
