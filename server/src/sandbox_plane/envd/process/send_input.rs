//! Requests that carry input for a process, or end it.

use super::selector::Selector;
use crate::sandbox_plane::envd::connect::{
    Call, Code, ConnectError, Incoming,
    json::{Base64, Empty},
};
use serde::Deserialize;

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
    let bytes = request.input.unwrap_or_default().bytes(input.has_terminal())?;
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
    if input.has_terminal() == Some(true) {
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
    input.prepare(call.sandbox(), pid).await?;
    call.target.has_begun();
    while let Some(message) = incoming.next::<StreamRequest>().await? {
        match message {
            StreamRequest { start: None, data: Some(piece), keepalive: None } => {
                let bytes = piece.input.unwrap_or_default().bytes(input.has_terminal())?;
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
