//! Connections to programs in a sandbox: a TCP port of the guest's loopback as a stream of bytes on the host, over a vsock
//! connection of its own. What comes out of it is the guest's: whoever takes it must not believe it.

use crate::{
    agent::{AgentConnection, AgentError},
    in_use::InUse,
    sandbox::{ExecError, Sandbox},
    wire::WireError,
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

/// A connection to a program. Each direction has an end of its own: shutting it down for writing lets the program read the
/// end of its input and go on writing.
#[derive(Debug)]
pub struct PortStream {
    stream: UnixStream,
    /// Came right behind the agent's answer.
    first: Vec<u8>,
    _in_use: Option<InUse>,
}

impl Sandbox {
    /// Connects to a TCP port of the guest's loopback.
    ///
    /// # Errors
    /// Every [`ExecError`] but those of requests; [`AgentError::Refused`] when nothing listens there.
    pub async fn connect(&self, port: PortNumber) -> Result<PortStream, ExecError> {
        let identity = self.reachable().await?;
        let request = HostMessage::Connect(PortRequest { port });
        let connected = AgentConnection::request(&self.directory, identity.as_ref(), &request).await;
        match connected.and_then(|(connection, answer)| PortStream::on(connection, &answer)) {
            Ok(stream) => Ok(stream),
            Err(error) => Err(self.explain(error).await),
        }
    }
}

impl PortStream {
    fn on(connection: AgentConnection, answer: &AgentMessage) -> Result<Self, AgentError> {
        if *answer != AgentMessage::Connected {
            return Err(WireError::Unexpected("answer to a request for a port").into());
        }
        let AgentConnection { reader, writer } = connection;
        let (reader, first, in_use) = reader.into_parts();
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
        // One whose guest has ended it already has nothing to shut down.
        match ready!(Pin::new(&mut self.stream).poll_shutdown(context)) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}
