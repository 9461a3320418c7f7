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

#[cfg(doc)]
use crate::{guest::connection::answer::GuestScope, sandbox::Sandbox};
use crate::{
    guest::{
        connection::{
            agent::{AgentConnection, AgentError},
            conveyed::Answer,
            courier::{Call, Carried, Courier, Reaching, Use},
            route::{EndLog, Route},
        },
        error::{ExecError, FailureClass},
        files::Files,
        ports::PortStream,
        process::{attach_spec::AttachSpec, exec::Exec, running::ProcessSummary, spec::ProcessSpec},
        silence::{FIRST_LOOK, Silence, Step},
    },
    vmm::wire::{FrameReader, WireError},
};
use sandboxvm_protocol::agent::{
    AgentMessage, HostMessage, MAX_AGENT_MESSAGE, SignalNumber, WIRE,
    port::{PortNumber, PortRequest},
    process::ProcessInfo,
};
use std::{
    future::pending,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    sync::Arc,
};
use tokio::{net::UnixStream, time::sleep};

fn encoded(call: &Call) -> Result<Vec<u8>, ExecError> {
    postcard::to_stdvec(call).map_err(|error| elsewhere(format!("cannot encode a request: {error}")))
}

fn elsewhere(message: String) -> ExecError {
    ExecError::Reported { class: FailureClass::Unavailable, ended: false, message }
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
        Ok(Route::processes(self).await?.into_iter().map(ProcessSummary::from).collect())
    }

    /// See [`Sandbox::signal`].
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn signal(&self, pid: u32, signal: SignalNumber) -> Result<(), ExecError> {
        Route::signal(self, pid, signal).await
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

impl Route for RemoteSandbox {
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

    fn signal(&self, pid: u32, signal: SignalNumber) -> Reaching<'_, Result<(), ExecError>> {
        Box::pin(async move {
            match self.call(Call::Signal { pid, signal }).await?.0 {
                Answer::Signalled => Ok(()),
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
    use crate::{
        guest::connection::conveyed::Conveyed, home::directory::VSOCK_SOCKET, manager::tests::manager_with,
        sandbox::Sandbox,
    };
    use sandboxvm_protocol::{
        agent::{
            CText, FailureKind, MAX_HOST_MESSAGE,
            files::{FileOperation, FilePath, FileRequest},
        },
        frame::FrameDecoder,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    /// Carries calls to a sandbox of this process.
    #[derive(Debug)]
    struct Near(Sandbox);

    impl Courier for Near {
        fn carry(&self, call: Vec<u8>) -> Reaching<'_, Result<Carried, String>> {
            Box::pin(async move {
                let answered = self.0.answer(&call, &crate::GuestScope::All).await;
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
        let path = || FilePath::try_from("/a").unwrap();
        let operation = FileOperation::Read { path: path() };
        let request = HostMessage::Files(FileRequest { user: None, operation });
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
