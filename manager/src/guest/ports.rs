//! Connections to programs in a sandbox: a TCP port of the guest's loopback as a stream of bytes on
//! the host, over a separate vsock connection. The bytes come from the guest, and their reader must
//! not trust them.

use crate::{
    guest::{
        connection::{
            agent::{AgentConnection, AgentError},
            courier::Use,
            route::Route,
        },
        error::ExecError,
    },
    sandbox::Sandbox,
    vmm::wire::WireError,
};
use sandboxvm_protocol::agent::{
    AgentMessage, HostMessage,
    port::{PortNumber, PortRequest},
};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

/// A connection to a program. Each direction ends separately: after a shutdown for writing, the
/// program reads the end of its input and can still write.
#[derive(Debug)]
pub struct PortStream {
    stream: UnixStream,
    /// Bytes that arrived right after the agent's answer.
    first: Vec<u8>,
    _in_use: Option<Use>,
}

impl Sandbox {
    /// Connects to a TCP port of the guest's loopback.
    ///
    /// # Errors
    /// Every [`ExecError`] except those of requests; [`AgentError::Refused`] if no program listens
    /// on the port.
    pub async fn connect(&self, port: PortNumber) -> Result<PortStream, ExecError> {
        PortStream::open(self, PortRequest { port }).await
    }
}

impl PortStream {
    pub(crate) async fn open(sandbox: &dyn Route, request: PortRequest) -> Result<Self, ExecError> {
        let (connection, answer) = sandbox.request(HostMessage::Connect(request)).await?;
        match Self::on(connection, &answer) {
            Ok(stream) => Ok(stream),
            Err(error) => Err(sandbox.explained(error).await),
        }
    }

    fn on(connection: AgentConnection, answer: &AgentMessage) -> Result<Self, AgentError> {
        if *answer != AgentMessage::Connected {
            return Err(WireError::Unexpected("answer to a request for a port").into());
        }
        let AgentConnection { reader, writer, in_use } = connection;
        let (reader, first) = reader.into_parts();
        let stream = reader.reunite(writer).map_err(|error| WireError::Io(io::Error::other(error)))?;
        Ok(Self { stream, first, _in_use: in_use })
    }
}

impl AsyncRead for PortStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let count = into.remaining().min(self.first.len());
        into.put_slice(&self.first[..count]);
        self.first.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // If the guest has closed the connection already, there is nothing to shut down.
        match ready!(Pin::new(&mut self.stream).poll_shutdown(context)) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::directory::{SandboxDirectory, VSOCK_SOCKET};
    use sandboxvm_protocol::agent::{Failure, FailureKind, MAX_AGENT_MESSAGE, WIRE};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    /// Connects to a guest that sends `answer`, echoes the data that follows, and ends.
    async fn connect(answer: Vec<u8>) -> Result<PortStream, AgentError> {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let listener = UnixListener::bind(directory.path().join(VSOCK_SOCKET)).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            stream.read_exact(&mut asked[.."CONNECT 1024\n".len()]).await.unwrap();
            stream.write_all(b"OK 1\n").await.unwrap();
            assert!(stream.read(&mut asked).await.unwrap() > 0);
            stream.write_all(&answer).await.unwrap();
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        let request = HostMessage::Connect(PortRequest { port: PortNumber::try_from(80).unwrap() });
        let connected = AgentConnection::request(&directory, None, &request).await;
        connected.and_then(|(connection, answer)| PortStream::on(connection, &answer))
    }

    fn messages(messages: &[AgentMessage]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            WIRE.append_message(&mut bytes, message, MAX_AGENT_MESSAGE).unwrap();
        }
        bytes
    }

    const HELLO: AgentMessage = AgentMessage::Hello { version: WIRE.version };

    #[tokio::test]
    async fn early_data_comes_first_and_directions_end_separately() {
        let mut answer = messages(&[HELLO, AgentMessage::Connected]);
        answer.extend(b"220 ready ");
        let mut stream = connect(answer).await.unwrap();
        let mut said = [0; 3];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"220");
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, " ready hello");
    }

    #[tokio::test]
    async fn refusals_and_invalid_answers_are_errors() {
        let kind = FailureKind::ConnectionRefused;
        let refused = AgentMessage::Failed(Failure { kind, message: "nothing\x1b[2J there".into() });
        let error = connect(messages(&[HELLO, refused])).await.unwrap_err();
        assert!(matches!(&error, AgentError::Refused { kind: FailureKind::ConnectionRefused, .. }), "{error:?}");
        assert!(!error.to_string().contains('\x1b'));
        for nonsense in [messages(&[HELLO, AgentMessage::Pong]), b"HTTP/1.1 200 OK\r\n\r\n".to_vec()] {
            assert!(matches!(connect(nonsense).await, Err(AgentError::Wire(_))));
        }
        let old = AgentMessage::Hello { version: 2 };
        let error = connect(messages(&[old])).await.unwrap_err();
        assert!(matches!(error, AgentError::TooOld { agent: 2, needed: 3 }), "{error:?}");
    }
}
