//! Input of processes. A client's requests come one by one and on any connection, so the way to a process's input is kept
//! between them: that of the stream which started it while that lasts, else one made for this alone.

use super::{Empty, Selector};
use crate::sandbox_plane::envd::connect::{Call, Code, ConnectError, Incoming, json::Base64};
use sandboxvm_manager::{Sandbox, StdinSink, WireError};
use sandboxvm_protocol::{
    agent::process::{AttachRequest, View},
    frame::MAX_STREAM_BODY,
};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::task::AbortOnDropHandle;

/// The way to a process's input; whoever holds the lock writes, so writes are whole and in order.
#[derive(Debug)]
pub(super) struct Input {
    /// Where it is known.
    has_terminal: Option<bool>,
    way: Arc<Mutex<Way>>,
}

#[derive(Debug)]
enum Way {
    /// To be made when it is needed.
    Unknown,
    Open {
        sink: StdinSink,
        /// Takes the agent's credit where no client's stream does.
        _credit: Option<AbortOnDropHandle<()>>,
    },
    /// It takes none, or was ended.
    Closed,
}

impl Input {
    /// Of a process that was just started and takes input.
    pub(super) fn open(sink: StdinSink, has_terminal: bool) -> Self {
        Self::of(Way::Open { sink, _credit: None }, Some(has_terminal))
    }

    /// Of one that takes none.
    pub(super) fn none() -> Self {
        Self::of(Way::Closed, Some(false))
    }

    /// Of one that somebody else started.
    pub(super) fn unknown() -> Self {
        Self::of(Way::Unknown, None)
    }

    pub(super) fn has_terminal(&self) -> Option<bool> {
        self.has_terminal
    }

    fn of(way: Way, has_terminal: Option<bool>) -> Self {
        Self { has_terminal, way: Arc::new(Mutex::new(way)) }
    }

    /// The stream that it belonged to has ended: it is let go, so that its connection ends too. Whoever still writes to
    /// that finds out by itself.
    fn let_go(&self) {
        if let Ok(mut way) = self.way.try_lock()
            && matches!(*way, Way::Open { _credit: None, .. })
        {
            *way = Way::Unknown;
        }
    }

    async fn write(&self, sandbox: &Sandbox, pid: u32, bytes: Vec<u8>) -> Result<(), ConnectError> {
        let mut way = Arc::clone(&self.way).lock_owned().await;
        let was_open = matches!(*way, Way::Open { .. });
        make(&mut way, sandbox, pid).await?;
        match write_all(way, bytes).await? {
            Written::All => Ok(()),
            // The connection ended since, as it does when its sandbox rests; the process may live.
            Written::Nothing(bytes) if was_open => {
                let mut way = Arc::clone(&self.way).lock_owned().await;
                make(&mut way, sandbox, pid).await?;
                match write_all(way, bytes).await? {
                    Written::All => Ok(()),
                    Written::Nothing(_) | Written::Some => Err(gone(pid)),
                }
            }
            Written::Nothing(_) | Written::Some => Err(gone(pid)),
        }
    }

    async fn finish(&self, sandbox: &Sandbox, pid: u32) -> Result<(), ConnectError> {
        let mut way = Arc::clone(&self.way).lock_owned().await;
        make(&mut way, sandbox, pid).await?;
        match std::mem::replace(&mut *way, Way::Closed) {
            Way::Open { sink, .. } => sink.finish().await.map_err(|_| gone(pid)),
            Way::Unknown | Way::Closed => Err(closed(pid)),
        }
    }
}

enum Written {
    All,
    Nothing(Vec<u8>),
    /// Maybe.
    Some,
}

/// In a task of its own: a write that is begun must be gone on with, also when its client goes away.
async fn write_all(mut way: OwnedMutexGuard<Way>, bytes: Vec<u8>) -> Result<Written, ConnectError> {
    let write = async move {
        let Way::Open { sink, .. } = &mut *way else { return Written::Nothing(bytes) };
        let written = sink.write(&bytes).await;
        if written.is_ok() {
            return Written::All;
        }
        *way = Way::Unknown;
        // What fits one frame was refused before it was sent.
        let is_unsent = matches!(written, Err(WireError::Closed)) && bytes.len() <= MAX_STREAM_BODY;
        if is_unsent { Written::Nothing(bytes) } else { Written::Some }
    };
    tokio::spawn(write).await.map_err(|error| ConnectError::new(Code::Internal, error.to_string()))
}

/// Lets go of the way to a process's input at the end of the stream that it came with.
#[derive(Debug)]
pub(super) struct Attendance(pub(super) Arc<Input>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

async fn make(way: &mut Way, sandbox: &Sandbox, pid: u32) -> Result<(), ConnectError> {
    match way {
        Way::Open { .. } => return Ok(()),
        Way::Closed => return Err(closed(pid)),
        Way::Unknown => {}
    }
    let request = AttachRequest { pid, view: View::End, stdin: true, terminal: None };
    let exec = sandbox.attach(request).await?;
    let mut output = exec.output;
    let credit = tokio::spawn(async move { while let Ok(Some(_)) = output.next().await {} });
    *way = Way::Open { sink: exec.stdin, _credit: Some(AbortOnDropHandle::new(credit)) };
    Ok(())
}

fn gone(pid: u32) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("process with pid {pid} not found: it has ended"))
}

fn closed(pid: u32) -> ConnectError {
    ConnectError::new(
        Code::FailedPrecondition,
        format!("stdin not enabled or closed: process {pid} was started without it, or it was closed"),
    )
}

/// Bytes for a process.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    stdin: Option<Base64>,
    pty: Option<Base64>,
}

impl Data {
    fn bytes(self, has_terminal: Option<bool>) -> Result<Vec<u8>, ConnectError> {
        match (self.stdin, self.pty, has_terminal) {
            (Some(_), None, Some(true)) => {
                Err(ConnectError::new(Code::FailedPrecondition, "the process has a terminal: send its input as pty"))
            }
            (None, Some(_), Some(false)) => {
                Err(ConnectError::new(Code::FailedPrecondition, "the process has no terminal: send its input as stdin"))
            }
            (Some(bytes), None, _) | (None, Some(bytes), _) => Ok(bytes.0),
            _ => Err(ConnectError::invalid("the request has no input: stdin or pty")),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SendRequest {
    process: Option<Selector>,
    input: Option<Data>,
}

pub(super) async fn send(call: Call, request: SendRequest) -> Result<Empty, ConnectError> {
    let pid = Selector::find(request.process.as_ref(), &call.state().processes)?;
    let input = call.state().processes.input(pid);
    let bytes = request.input.unwrap_or_default().bytes(input.has_terminal)?;
    input.write(call.sandbox(), pid, bytes).await?;
    Ok(Empty {})
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CloseRequest {
    process: Option<Selector>,
}

pub(super) async fn close(call: Call, request: CloseRequest) -> Result<Empty, ConnectError> {
    let pid = Selector::find(request.process.as_ref(), &call.state().processes)?;
    let input = call.state().processes.input(pid);
    if input.has_terminal == Some(true) {
        let message = "cannot close stdin for PTY process — send Ctrl+D (0x04) instead";
        return Err(ConnectError::new(Code::FailedPrecondition, message));
    }
    input.finish(call.sandbox(), pid).await?;
    Ok(Empty {})
}

/// One of a stream: which process, then its input.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamRequest {
    start: Option<Begin>,
    data: Option<Piece>,
    keepalive: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Begin {
    process: Option<Selector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Piece {
    input: Option<Data>,
}

pub(super) async fn stream(call: Call, mut incoming: Incoming) -> Result<(), ConnectError> {
    let first: StreamRequest = incoming.next().await?.unwrap_or_default();
    let begin = first.start.ok_or_else(|| ConnectError::invalid("the first message must name a process (start)"))?;
    let pid = Selector::find(begin.process.as_ref(), &call.state().processes)?;
    let input = call.state().processes.input(pid);
    {
        let mut way = Arc::clone(&input.way).lock_owned().await;
        make(&mut way, call.sandbox(), pid).await?;
    }
    call.reached.has_begun();
    while let Some(message) = incoming.next::<StreamRequest>().await? {
        match message {
            StreamRequest { start: None, data: Some(piece), keepalive: None } => {
                let bytes = piece.input.unwrap_or_default().bytes(input.has_terminal)?;
                input.write(call.sandbox(), pid, bytes).await?;
            }
            StreamRequest { start: None, data: None, keepalive: Some(_) } => {}
            _ => return Err(ConnectError::invalid("a message must be data or keepalive")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_read_as_clients_write_it() {
        let request: SendRequest = serde_json::from_str(r#"{"process":{"pid":7},"input":{"stdin":"aGk="}}"#).unwrap();
        assert_eq!(request.input.unwrap().bytes(None), Ok(b"hi".to_vec()));
        let data = |text: &str, has_terminal| {
            serde_json::from_str::<Data>(text).unwrap().bytes(has_terminal).map_err(|error| error.code)
        };
        assert_eq!(data(r#"{"pty":"aGk="}"#, Some(true)), Ok(b"hi".to_vec()));
        assert_eq!(data(r#"{"pty":"aGk="}"#, Some(false)), Err(Code::FailedPrecondition));
        assert_eq!(data(r#"{"stdin":"aGk="}"#, Some(true)), Err(Code::FailedPrecondition));
        assert_eq!(data("{}", None), Err(Code::InvalidArgument));
        let piece: StreamRequest = serde_json::from_str(r#"{"data":{"input":{"stdin":""}}}"#).unwrap();
        assert_eq!(piece.data.unwrap().input.unwrap().bytes(Some(false)), Ok(Vec::new()));
        let start: StreamRequest = serde_json::from_str(r#"{"start":{"process":{"tag":"x"}}}"#).unwrap();
        assert_eq!(start.start.unwrap().process.unwrap().tag.as_deref(), Some("x"));
        let alive: StreamRequest = serde_json::from_str(r#"{"keepalive":{}}"#).unwrap();
        assert!(alive.keepalive.is_some());
    }
}
