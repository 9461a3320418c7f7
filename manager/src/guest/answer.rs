//! Answers the calls of another process about the guest of a sandbox: see `remote`. The caller may
//! have been taken over.

use crate::{
    audit::Event,
    guest::{
        agent::{AgentConnection, AgentError},
        conveyed::Answer,
        courier::{Call, Use},
        error::{ExecError, FailureClass},
        in_use::InUse,
        route::Route,
    },
    sandbox::Sandbox,
    vmm::wire::WireError,
};
use sandboxvm_protocol::agent::{HostMessage, files::FileOperation, port::PortNumber};
use std::{io, os::fd::OwnedFd};

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
                let failed = |error: io::Error| ExecError::from(WireError::Io(error));
                let stream = reader.reunite(writer).map_err(|error| failed(io::Error::other(error)))?;
                let stream = OwnedFd::from(stream.into_std().map_err(failed)?);
                let in_use = in_use.and_then(|in_use| match in_use {
                    Use::Lock(lock) => Some(lock),
                    Use::Lease(_) => None,
                });
                Ok((Answer::Begun { first, early }, Some((stream, in_use))))
            }
            Call::Processes => Ok((Answer::Processes(Route::processes(self).await?), None)),
            Call::Silence(step) => Ok((Answer::Silence(Route::silence(self, step).await), None)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{home::directory::VSOCK_SOCKET, manager::tests::manager_with};
    use sandboxvm_protocol::agent::{
        SignalNumber,
        files::{FilePath, FileRequest},
        port::PortRequest,
    };
    use tokio::net::UnixListener;

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
}
