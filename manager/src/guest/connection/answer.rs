//! Answers the calls of another process about the guest of a sandbox: see `remote`. The caller may
//! have been taken over.

use crate::{
    audit::Event,
    guest::{
        connection::{
            agent::{AgentConnection, AgentError},
            conveyed::Answer,
            courier::{Call, Use},
            route::Route,
        },
        error::{ExecError, FailureClass},
        in_use::InUse,
    },
    sandbox::Sandbox,
    vmm::wire::WireError,
};
use sandboxvm_protocol::agent::{
    CText, HostMessage,
    files::{FileOperation, FilePath},
    port::PortNumber,
};
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestScope {
    /// Run processes, and use files.
    All,
    /// Read one file, as this user or as root.
    ReadFile {
        /// Which; from the user's home unless it begins at the root.
        path: FilePath,
        /// Whose.
        user: CText,
    },
    /// Write one file, as this user or as root.
    WriteFile {
        /// Which; any if there is none.
        path: Option<FilePath>,
        /// Whose.
        user: CText,
    },
    /// Connect to this port.
    Port(PortNumber),
}

impl GuestScope {
    fn allows(&self, request: &HostMessage) -> bool {
        use FileOperation::{Describe, Read, SetOwner, Stat, Write, WriteWithMetadata};
        match (self, request) {
            // A signal is a separate call: its connection would take further requests.
            (Self::All, HostMessage::Exec(_) | HostMessage::Attach(_) | HostMessage::Files(_)) => true,
            (Self::Port(port), HostMessage::Connect(request)) => request.port == *port,
            (Self::ReadFile { user, .. } | Self::WriteFile { user, .. }, HostMessage::Files(request)) => {
                // As root where the user may not: that is what envd does.
                let is_users = request.user.as_ref().is_none_or(|asked| asked == user);
                let is_allowed = match (self, &request.operation) {
                    // Where the user's home is.
                    (_, Stat { path, .. }) if request.user.is_some() && path.as_bytes() == b"." => true,
                    (Self::ReadFile { path, .. }, Read { path: asked }) => asked == path,
                    (
                        Self::WriteFile { path, .. },
                        Write { path: asked, .. } | WriteWithMetadata { path: asked, .. },
                    ) => path.as_ref().is_none_or(|path| asked == path),
                    (Self::WriteFile { path, .. }, Stat { path: asked, .. } | Describe { path: asked }) => {
                        path.as_ref().is_none_or(|path| is_or_is_above(asked, path))
                    }
                    // Of what root made: the file, and directories above it.
                    (Self::WriteFile { path, user }, SetOwner { path: asked, owner, .. }) => {
                        let owner = owner.as_bytes().split(|byte| *byte == b':').next();
                        owner == Some(user.as_bytes()) && path.as_ref().is_none_or(|path| is_or_is_above(asked, path))
                    }
                    _ => false,
                };
                is_users && is_allowed
            }
            _ => false,
        }
    }

    /// The user whose home a path of it begins at.
    fn user_of_relative(&self) -> Option<&CText> {
        match self {
            Self::ReadFile { path, user } | Self::WriteFile { path: Some(path), user }
                if !path.as_bytes().starts_with(b"/") =>
            {
                Some(user)
            }
            _ => None,
        }
    }

    /// The same from the root.
    fn below(&self, home: &FilePath) -> Option<Self> {
        let absolute = |path: &FilePath| FilePath::try_from([home.as_bytes(), b"/", path.as_bytes()].concat()).ok();
        match self {
            Self::ReadFile { path, user } => Some(Self::ReadFile { path: absolute(path)?, user: user.clone() }),
            Self::WriteFile { path: Some(path), user } => {
                Some(Self::WriteFile { path: Some(absolute(path)?), user: user.clone() })
            }
            _ => None,
        }
    }
}

fn is_or_is_above(asked: &FilePath, path: &FilePath) -> bool {
    path.as_bytes().strip_prefix(asked.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// A failure without its text, which may have the last lines of the sandbox's console.
fn without_text(error: ExecError) -> ExecError {
    let (class, ended) = (error.class(), error.is_of_an_ended_sandbox());
    match error {
        ExecError::Agent(AgentError::Refused { .. } | AgentError::TooOld { .. } | AgentError::NotListening) => error,
        _ => {
            let message = if ended { "the sandbox has ended" } else { "the sandbox cannot be reached now" };
            ExecError::Reported { class, ended, message: message.to_owned() }
        }
    }
}

fn invalid(message: &str) -> ExecError {
    ExecError::Reported { class: FailureClass::Invalid, ended: false, message: message.to_owned() }
}

impl Sandbox {
    /// Does what a call of another process asks for, within `scope`. The call may be any bytes.
    /// Dropping the future cancels it.
    pub async fn answer(&self, call: &[u8], scope: &GuestScope) -> Answered {
        let (answer, stream, in_use) = match self.answer_to(call, scope).await {
            Ok((answer, Some((stream, in_use)))) => (answer, Some(stream), in_use.map(InUseElsewhere)),
            Ok((answer, None)) => (answer, None, None),
            Err(error) => (Answer::Failed(error.into()), None, None),
        };
        // Its parts were decoded from bounded frames, and an empty answer is an error for its reader.
        Answered { answer: postcard::to_stdvec(&answer).unwrap_or_default(), stream, in_use }
    }

    /// Notes what another process reports about a connection that it was given. The call may be any bytes.
    pub fn told(&self, call: &[u8], scope: &GuestScope) {
        match postcard::from_bytes(call) {
            Ok(Call::Ended { pid, status }) if *scope == GuestScope::All => {
                self.trail().note(Event::ended(pid, status));
            }
            Ok(Call::LimitsHit(hit)) if *scope == GuestScope::All => self.trail().note(Event::limits_hit(hit)),
            _ => {}
        }
    }

    async fn answer_to(
        &self,
        call: &[u8],
        scope: &GuestScope,
    ) -> Result<(Answer, Option<(OwnedFd, Option<InUse>)>), ExecError> {
        let is_all = *scope == GuestScope::All;
        let denied = || invalid("the request to the sandbox is not allowed");
        let within = |error| if is_all { error } else { without_text(error) };
        match postcard::from_bytes(call).map_err(|_| invalid("the request to the sandbox is malformed"))? {
            Call::Request(request) if !self.allows(scope, &request).await => Err(denied()),
            Call::Request(request) => {
                let (connection, first) = self.send(request).await.map_err(within)?;
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
            Call::Silence(step) => Ok((Answer::Silence(Route::silence(self, step).await), None)),
            Call::Explain(silence) => {
                let error = silence.map_or(AgentError::Wire(WireError::Closed), AgentError::Silent);
                match self.explain(error).await {
                    ExecError::Agent(_) => Ok((Answer::Unexplained, None)),
                    explained => Err(within(explained)),
                }
            }
            Call::Processes if is_all => Ok((Answer::Processes(Route::processes(self).await?), None)),
            Call::Signal { pid, signal } if is_all => {
                Route::signal(self, pid, signal).await?;
                Ok((Answer::Signalled, None))
            }
            Call::Processes | Call::Signal { .. } | Call::Ended { .. } | Call::LimitsHit(_) => Err(denied()),
        }
    }

    async fn allows(&self, scope: &GuestScope, request: &HostMessage) -> bool {
        if scope.allows(request) {
            return true;
        }
        // A path from the user's home, asked for from the root: the guest says where that home is.
        let (Some(user), HostMessage::Files(_)) = (scope.user_of_relative(), request) else { return false };
        let Ok(here) = FilePath::try_from(".") else { return false };
        let home = self.files().as_user(user.clone()).stat(here, true).await;
        home.is_ok_and(|home| scope.below(&home.path).is_some_and(|scope| scope.allows(request)))
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

    fn text(text: &str) -> CText {
        CText::try_from(text).unwrap()
    }

    fn as_user(user: &str, operation: FileOperation) -> HostMessage {
        HostMessage::Files(FileRequest { user: Some(text(user)), operation })
    }

    #[test]
    fn a_scope_allows_its_requests_alone() {
        let port = |port| PortNumber::try_from(port).unwrap();
        let connect = |number| HostMessage::Connect(PortRequest { port: port(number) });
        let at = |path: &str| FilePath::try_from(path).unwrap();
        let read = |path| FileOperation::Read { path: at(path) };
        let write = |path| FileOperation::Write { path: at(path), mode: None, parents: true };
        let remove = || files(FileOperation::Remove { path: path(), recursive: true });
        let stat = |path| FileOperation::Stat { path: at(path), follow: true };
        let own = |path, owner| FileOperation::SetOwner { path: at(path), owner: text(owner), recursive: true };
        let signal = || HostMessage::SignalProcess { pid: 1, signal: SignalNumber::KILL };
        let (reader, writer, any) = (
            GuestScope::ReadFile { path: at("/d/a"), user: text("user") },
            GuestScope::WriteFile { path: Some(at("/d/a")), user: text("user") },
            GuestScope::WriteFile { path: None, user: text("user") },
        );
        for (scope, allowed, denied) in [
            (GuestScope::All, vec![files(read("/a")), files(write("/a")), remove()], vec![connect(80), signal()]),
            (
                reader,
                vec![files(read("/d/a")), as_user("user", read("/d/a")), as_user("user", stat("."))],
                vec![
                    files(read("/d/b")),
                    files(read("/d/../d/a")),
                    as_user("other", read("/d/a")),
                    files(write("/d/a")),
                    files(stat("/d")),
                    files(stat(".")),
                    remove(),
                    signal(),
                    connect(80),
                ],
            ),
            (
                writer,
                vec![
                    as_user("user", write("/d/a")),
                    files(write("/d/a")),
                    files(stat("/d")),
                    files(own("/d", "user:5")),
                ],
                vec![
                    files(write("/d/b")),
                    as_user("other", write("/d/a")),
                    files(read("/d/a")),
                    files(own("/d", "other")),
                    files(own("/e", "user")),
                    files(own("/d/a/b", "user")),
                    remove(),
                    signal(),
                ],
            ),
            (any, vec![files(write("/d/b"))], vec![as_user("other", write("/d/b")), files(read("/d/b")), remove()]),
            (GuestScope::Port(port(80)), vec![connect(80)], vec![connect(81), files(read("/a")), signal()]),
        ] {
            assert!(allowed.iter().all(|request| scope.allows(request)), "{scope:?}");
            for request in denied {
                assert!(!scope.allows(&request), "{scope:?} {request:?}");
            }
            // What changes a machine is the manager's alone.
            for own in [HostMessage::Shutdown { grace_ms: 0 }, HostMessage::Ping, HostMessage::StdinEof] {
                assert!(!scope.allows(&own), "{scope:?} {own:?}");
            }
        }
    }

    #[test]
    fn a_signed_path_from_home_is_that_of_the_users_home() {
        let at = |path: &str| FilePath::try_from(path).unwrap();
        let scope = GuestScope::ReadFile { path: at("passwd"), user: text("user") };
        let below = scope.below(&at("/home/user")).unwrap();
        assert!(below.allows(&files(FileOperation::Read { path: at("/home/user/passwd") })));
        assert!(!below.allows(&files(FileOperation::Read { path: at("/etc/passwd") })));
    }

    #[test]
    fn the_text_of_a_failure_is_for_the_whole_scope_alone() {
        let console =
            || ExecError::Reported { class: FailureClass::Unavailable, ended: true, message: "secret".into() };
        let ExecError::Reported { class, ended, message } = without_text(console()) else { panic!() };
        assert_eq!((class, ended, message.as_str()), (FailureClass::Unavailable, true, "the sandbox has ended"));
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
            let answered = sandbox.answer(&bytes, &GuestScope::Port(PortNumber::try_from(80).unwrap())).await;
            assert!(answered.stream.is_none() && !answered.answer.is_empty());
        }
        let accepted = tokio::time::timeout(std::time::Duration::from_millis(20), listener.accept()).await;
        assert!(accepted.is_err(), "no call of another scope is sent to the guest");
        let log = std::fs::read_to_string(sandbox.trail().path()).unwrap_or_default();
        assert_eq!(log, "");
    }
}
