//! Streams of processes: started, or joined while they run. First comes that it started, then what it writes, then its end.
//!
//! A client that does not read stalls its process, by way of the stream, the manager and vsock's credit; one that goes away
//! leaves it running.

use super::{
    config::{ProcessConfig, refused},
    events::Event,
    input::{Attendance, Input},
    pty::Pty,
    selector::Selector,
};
use crate::sandbox_plane::envd::{
    connect::{Call, Code, ConnectError, Messages, silence},
    paths::{below_home, home},
};
use sandboxvm_manager::{
    AgentError, AttachSpec, Exec, ExecError, FailureKind, OnDisconnect, Output, OutputStream, View,
};
use serde::Deserialize;
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};
use tokio::time::timeout;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StartRequest {
    process: Option<ProcessConfig>,
    pty: Option<Pty>,
    tag: Option<String>,
    /// Where it is not said, it has one.
    stdin: Option<bool>,
}

/// Starts a process. The client's time is the process's, which is killed when that is up.
pub(super) async fn start(call: Call, request: StartRequest, messages: Messages) -> Result<(), ConnectError> {
    let config = request.process.ok_or_else(|| ConnectError::invalid("the request has no process"))?;
    let terminal = request.pty.as_ref().map(Pty::size).transpose()?;
    let has_terminal = terminal.is_some();
    let wants_stdin = has_terminal || request.stdin.unwrap_or(true);
    let cwd = directory(&call, config.cwd.as_deref()).await?;
    let mut spec = config
        .spec()
        .user(OsStr::from_bytes(call.user.as_bytes()))
        .reads_stdin(wants_stdin)
        .terminal(terminal)
        .timeout(call.timeout)
        .on_disconnect(OnDisconnect::Keep);
    if let Some(cwd) = &cwd {
        spec = spec.working_directory(cwd);
    }
    let spec = spec.build().map_err(|error| refused(&error))?;
    let started = call.sandbox().exec(spec).await;
    let Exec { pid, stdin, output, control } = started.map_err(|error| failed(error, cwd.as_deref()))?;
    let input = if wants_stdin { Input::open(stdin, has_terminal) } else { Input::none() };
    let input = call.state().processes.add(pid, config, request.tag, input);
    let attendance = Attendance(Arc::clone(&input));
    let ended = relay(&call, pid, output, has_terminal, &messages).await;
    // With the last of what sends, the connection's direction to the guest ends, and the agent takes that for its end.
    drop(control);
    drop(attendance);
    if matches!(ended, Ok(()) | Err(ConnectError { code: Code::DeadlineExceeded, .. })) {
        call.state().processes.remove(pid, &input);
    }
    ended
}

/// Why nothing was started; of a directory that is not there in E2B's words.
fn failed(error: ExecError, cwd: Option<&str>) -> ConnectError {
    match (&error, cwd) {
        (ExecError::Agent(AgentError::Refused { kind: FailureKind::BadWorkingDirectory, .. }), Some(cwd)) => {
            ConnectError::invalid(format!("cwd '{cwd}' does not exist: {error}"))
        }
        _ => error.into(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConnectRequest {
    process: Option<Selector>,
}

/// Joins one: what is kept of its output comes first. The client's time is the stream's alone.
pub(super) async fn connect(call: Call, request: ConnectRequest, messages: Messages) -> Result<(), ConnectError> {
    let pid = Selector::find(request.process.as_ref(), &call.state().processes)?;
    let joined = async {
        let spec = AttachSpec::new(pid, View::Attend);
        let has_terminal = match call.state().processes.input(pid).has_terminal() {
            Some(has_terminal) => has_terminal,
            None => has_terminal_by_list(&call, pid).await?,
        };
        let exec = call.sandbox().attach(spec).await?;
        relay(&call, pid, exec.output, has_terminal, &messages).await
    };
    match call.timeout {
        Some(within) => timeout(within, joined).await.unwrap_or_else(|_| Err(ConnectError::deadline())),
        None => joined.await,
    }
}

async fn has_terminal_by_list(call: &Call, pid: u32) -> Result<bool, ConnectError> {
    let processes = call.sandbox().processes().await?;
    let found = processes.iter().find(|process| process.pid == pid);
    let found = found.ok_or_else(|| ConnectError::new(Code::NotFound, format!("process with pid {pid} not found")))?;
    Ok(found.has_terminal)
}

async fn relay(
    call: &Call,
    pid: u32,
    mut output: OutputStream,
    has_terminal: bool,
    messages: &Messages,
) -> Result<(), ConnectError> {
    call.target.has_begun();
    messages.send(&Event::start(pid)).await?;
    loop {
        let next = tokio::select! {
            next = output.next() => next,
            () = silence(call.keepalive) => {
                messages.send(&Event::keepalive()).await?;
                continue;
            }
        };
        let next = match next {
            Ok(next) => next,
            Err(error) => return Err(call.sandbox().explain(error).await.into()),
        };
        match next {
            Some(Output::Stdout(bytes)) if has_terminal => messages.send(&Event::pty(bytes)).await?,
            Some(Output::Stdout(bytes)) => messages.send(&Event::stdout(bytes)).await?,
            Some(Output::Stderr(bytes)) => messages.send(&Event::stderr(bytes)).await?,
            Some(Output::Exited(status)) => return messages.send(&Event::end(status)?).await,
            // Clients have no word for what is kept no longer.
            Some(Output::Dropped(_)) => {}
            Some(Output::RunsOn) | None => return Ok(()),
        }
    }
}

/// Where a process starts: a path that does not begin at the root begins at the user's home.
async fn directory(call: &Call, cwd: Option<&str>) -> Result<Option<String>, ConnectError> {
    let path = match (cwd.filter(|path| !path.is_empty()), call.target.workdir()) {
        (None, Some(workdir)) if call.user.as_bytes() == call.target.user().as_bytes() => {
            return Ok(Some(workdir.to_owned()));
        }
        // The agent would take the directory of the image.
        (None | Some("~" | "~/"), Some(_)) => return Ok(Some(home(call).await?.path)),
        (None | Some("~" | "~/"), None) => return Ok(None),
        (Some(path), _) if path.starts_with('/') => path.to_owned(),
        (Some(path), _) => {
            let below = below_home(path)?;
            let home = home(call).await?;
            format!("{}/{below}", home.path.trim_end_matches('/'))
        }
    };
    Ok(Some(path))
}
