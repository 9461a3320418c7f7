//! The processes of a sandbox, found by PID: lists them, attaches to them, signals them and waits
//! for them.
//!
//! The guest's agent keeps them, and the host stores nothing about them, so every client that finds
//! the sandbox finds its processes, also in a fork of it. The reports of the agent are untrusted:
//! this module caps their number and the wire their size, and their text may not be printed to a
//! terminal as it is (see [`crate::printable`]).

use crate::{
    guest::{
        connection::{
            agent::{self, AgentConnection, AgentError},
            route::Route,
        },
        error::ExecError,
        identity::Identity,
        process::{
            attach_spec::AttachSpec,
            exec::{Exec, Output},
        },
    },
    home::directory::SandboxDirectory,
    sandbox::Sandbox,
    vmm::wire::WireError,
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::agent::{
    AgentMessage, ExitStatus, HostMessage, SignalNumber,
    process::{ProcessInfo, ProcessState, View},
};
use serde::Serialize;

/// Maximum number of processes in a list: far more than an agent runs and remembers.
const MOST: usize = 4096;

/// A process that a client started in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessSummary {
    /// PID of the process in the guest.
    pub pid: u32,
    /// Its program and arguments, as the guest reports them.
    pub argv: Vec<String>,
    /// True if a part of the arguments is missing.
    pub argv_is_cut: bool,
    /// `running` or `ended`.
    pub state: &'static str,
    /// Exit code after its end, as in a shell: its own, 128 + signal, or 124 after a timeout.
    pub exit_code: Option<u8>,
    /// The signal that killed it.
    pub signal: Option<u8>,
    /// True if its timeout was reached.
    pub timed_out: bool,
    /// Milliseconds since it ended.
    pub ended_ago_ms: Option<u64>,
    /// Milliseconds since it was started.
    pub age_ms: u64,
    /// True if its input accepts more data.
    pub stdin_is_open: bool,
    /// True if it has a terminal.
    pub has_terminal: bool,
    /// Number of clients that are attached now.
    pub connections: u32,
    /// Bytes of its output that are kept.
    pub kept_bytes: u64,
    /// Bytes of its output that are not kept any more.
    pub dropped_bytes: u64,
}

impl From<ProcessInfo> for ProcessSummary {
    fn from(info: ProcessInfo) -> Self {
        let (end, ended_ago_ms) = match info.state {
            ProcessState::Running => (None, None),
            ProcessState::Ended { status, ago_ms } => (Some(status), Some(ago_ms)),
        };
        Self {
            pid: info.pid,
            argv: info.argv.into_iter().map(|text| text.0).collect(),
            argv_is_cut: info.argv_is_cut,
            state: if end.is_some() { "ended" } else { "running" },
            exit_code: end.map(ExitStatus::shell_code),
            signal: if let Some(ExitStatus::Signal(signal)) = end { Some(signal.get()) } else { None },
            timed_out: end == Some(ExitStatus::TimedOut),
            ended_ago_ms,
            age_ms: info.age_ms,
            stdin_is_open: info.stdin_is_open,
            has_terminal: info.has_terminal,
            connections: info.connections,
            kept_bytes: info.kept_bytes,
            dropped_bytes: info.dropped_bytes,
        }
    }
}

impl Sandbox {
    /// Returns the processes that any client started, by PID: those that run, and those that ended
    /// and are remembered. Their child processes are not included.
    ///
    /// # Errors
    /// Every [`ExecError`] except those of requests.
    pub async fn processes(&self) -> Result<Vec<ProcessSummary>, ExecError> {
        Ok(Route::processes(self).await?.into_iter().map(ProcessSummary::from).collect())
    }

    /// Attaches to a process that runs, or that ended and is remembered, no matter which client
    /// started it.
    ///
    /// # Errors
    /// Every [`ExecError`] except those of requests.
    pub fn attach<'a>(&'a self, spec: AttachSpec) -> BoxFuture<'a, Result<Exec, ExecError>> {
        Box::pin(async move { Exec::attach(self, spec).await })
    }

    /// Signals the process group of a process.
    ///
    /// # Errors
    /// Every [`ExecError`] except those of requests.
    pub async fn signal(&self, pid: u32, signal: SignalNumber) -> Result<(), ExecError> {
        Route::signal(self, pid, signal).await
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// Every [`ExecError`] except those of requests.
    pub async fn wait(&self, pid: u32) -> Result<ExitStatus, ExecError> {
        let mut exec = self.attach(AttachSpec::new(pid, View::End)).await?;
        loop {
            match exec.output.next().await {
                Ok(Some(Output::Exited(status))) => return Ok(status),
                Ok(Some(_)) => {}
                Ok(None) => return Err(WireError::Closed.into()),
                Err(error) => return Err(self.explain(error).await),
            }
        }
    }
}

/// Returns the processes of all pages. Each page must continue where the one before ended, so that
/// a guest cannot make the host ask without limit.
pub(crate) async fn list(
    directory: &SandboxDirectory,
    identity: Option<&Identity>,
) -> Result<Vec<ProcessInfo>, AgentError> {
    let mut processes: Vec<ProcessInfo> = Vec::new();
    let first = HostMessage::ListProcesses { after: 0 };
    let (mut connection, mut answer) = AgentConnection::request(directory, identity, &first).await?;
    loop {
        let AgentMessage::Processes(page) = answer else {
            return Err(WireError::Unexpected("answer to a request for processes").into());
        };
        if page.more && page.processes.is_empty() {
            return Err(WireError::Unexpected("page without processes").into());
        }
        for info in page.processes {
            if info.pid <= processes.last().map_or(0, |last| last.pid) || processes.len() == MOST {
                return Err(WireError::Unexpected("order or number of processes").into());
            }
            processes.push(info);
        }
        if !page.more {
            return Ok(processes);
        }
        let after = processes.last().map_or(0, |last| last.pid);
        answer = agent::ask(directory, &mut connection, &HostMessage::ListProcesses { after }).await?;
    }
}

impl ExecError {
    /// Returns true if the guest's agent is older than the request, see [`AgentError::TooOld`].
    #[must_use]
    pub fn is_of_old_agent(&self) -> bool {
        matches!(self, Self::Agent(AgentError::TooOld { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::directory::VSOCK_SOCKET;
    use sandboxvm_protocol::{
        agent::{
            Failure, FailureKind, MAX_AGENT_MESSAGE, MAX_HOST_MESSAGE, WIRE,
            process::{ProcessPage, ShownText},
        },
        frame::{FrameDecoder, Wire},
    };
    use std::{fs, path::Path};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    /// Answers each message on one connection with the next of `answers`, as a guest could, with a
    /// wire as old as `wire`. Returns the number of messages.
    async fn guest(listener: UnixListener, wire: Wire, mut answers: Vec<AgentMessage>) -> usize {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut decoder = FrameDecoder::new(wire, MAX_HOST_MESSAGE);
        let mut connect = [0; 13];
        stream.read_exact(&mut connect).await.unwrap();
        assert_eq!(&connect, b"CONNECT 1024\n");
        stream.write_all(b"OK 1\n").await.unwrap();
        let (mut read, mut asked) = ([0; 4096], 0);
        loop {
            let mut bytes = Vec::new();
            match decoder.next_frame() {
                Ok(None) => match stream.read(&mut read).await {
                    Ok(0) | Err(_) => return asked,
                    Ok(count) => decoder.push(&read[..count]),
                },
                Ok(Some(_)) if answers.is_empty() => return asked,
                Ok(Some(_)) => {
                    asked += 1;
                    WIRE.append_message(&mut bytes, &answers.remove(0), MAX_AGENT_MESSAGE).unwrap();
                }
                Err(error) => {
                    let failure = Failure { kind: FailureKind::UnsupportedVersion, message: error.to_string() };
                    WIRE.append_message(&mut bytes, &AgentMessage::Failed(failure), MAX_AGENT_MESSAGE).unwrap();
                    let _ = stream.write_all(&bytes).await;
                    return asked;
                }
            }
            let _ = stream.write_all(&bytes).await;
        }
    }

    fn listener(directory: &Path) -> UnixListener {
        let _ = fs::remove_file(directory.join(VSOCK_SOCKET));
        UnixListener::bind(directory.join(VSOCK_SOCKET)).unwrap()
    }

    fn page(pids: &[u32], more: bool) -> AgentMessage {
        let info = |pid: &u32| ProcessInfo {
            pid: *pid,
            argv: vec![ShownText("sh".into())],
            argv_is_cut: false,
            age_ms: 5,
            state: ProcessState::Ended { status: ExitStatus::Signal(SignalNumber::KILL), ago_ms: 3 },
            stdin_is_open: false,
            has_terminal: false,
            connections: 0,
            kept_bytes: 1,
            dropped_bytes: 2,
        };
        AgentMessage::Processes(ProcessPage { processes: pids.iter().map(info).collect(), more })
    }

    #[tokio::test]
    async fn pages_are_joined_and_endless_lists_are_rejected() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let hello = || AgentMessage::Hello { version: WIRE.version };
        let ask = async |pages: Vec<AgentMessage>| {
            let answers = [vec![hello()], pages].concat();
            let (guest, listed) =
                tokio::join!(guest(listener(directory.path()), WIRE, answers), list(&directory, None));
            (guest, listed)
        };
        let (asked, listed) = ask(vec![page(&[3, 9], true), page(&[10], false)]).await;
        let listed: Vec<ProcessSummary> = listed.unwrap().into_iter().map(ProcessSummary::from).collect();
        assert_eq!((asked, listed.iter().map(|process| process.pid).collect::<Vec<_>>()), (3, vec![3, 9, 10]));
        assert_eq!((listed[0].state, listed[0].exit_code, listed[0].signal), ("ended", Some(137), Some(9)));
        for pages in [
            vec![page(&[], true)],
            vec![page(&[3, 3], false)],
            vec![page(&[0], false)],
            vec![page(&[3, 9], true), page(&[9], true)],
            vec![AgentMessage::Pong],
        ] {
            let error = ask(pages).await.1.unwrap_err();
            assert!(matches!(error, AgentError::Wire(WireError::Unexpected(_))), "{error}");
        }
        let endless = (0..200u32).map(|at| page(&(1 + at * 32..=at * 32 + 32).collect::<Vec<_>>(), true)).collect();
        let (asked, listed) = ask(endless).await;
        assert!(asked < 140 && listed.is_err(), "{asked} pages");
    }

    #[tokio::test]
    async fn old_agents_are_detected_and_still_run_commands() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let old = Wire { version: 1, ..WIRE };
        let answers = || vec![AgentMessage::Hello { version: 1 }, AgentMessage::Pong];
        let (_, listed) = tokio::join!(guest(listener(directory.path()), old, answers()), list(&directory, None));
        let error = listed.unwrap_err();
        assert!(matches!(error, AgentError::TooOld { agent: 1, needed: 2 }), "{error}");
        let socket = listener(directory.path());
        let asked = AgentConnection::request(&directory, None, &HostMessage::Ping);
        let (_, answer) = tokio::join!(guest(socket, old, answers()), async { asked.await.map(|(_, answer)| answer) });
        assert_eq!(answer.unwrap(), AgentMessage::Pong);
    }
}
