//! `process.Process`: processes of a sandbox, started, found again, fed, signalled.
//!
//! The guest's agent keeps them, so they outlive clients and this server. Kept here (`table`) are the descriptions that their
//! clients gave of them, and the way to their input.

mod config;
mod events;
mod input;
mod send_input;
mod start;
pub(super) mod table;

use super::connect::{self, Call, Code, ConnectError, json::Number};
use axum::{Router, body::Body, http::Request, routing::post};
use config::ProcessConfig;
use sandboxvm_manager::{AttachSpec, SignalNumber, TerminalSize, View};
use serde::{Deserialize, Serialize};
use table::Processes;

pub(super) fn router() -> Router {
    Router::new()
        .route("/process.Process/List", post(|request: Request<Body>| connect::unary(request, list)))
        .route("/process.Process/Start", post(|request: Request<Body>| connect::server_stream(request, start::start)))
        .route(
            "/process.Process/Connect",
            post(|request: Request<Body>| connect::server_stream(request, start::connect)),
        )
        .route("/process.Process/Update", post(|request: Request<Body>| connect::unary(request, update)))
        .route("/process.Process/SendInput", post(|request: Request<Body>| connect::unary(request, send_input::send)))
        .route(
            "/process.Process/StreamInput",
            post(|request: Request<Body>| connect::client_stream(request, send_input::stream)),
        )
        .route("/process.Process/CloseStdin", post(|request: Request<Body>| connect::unary(request, send_input::close)))
        .route("/process.Process/SendSignal", post(|request: Request<Body>| connect::unary(request, signal)))
}

/// An answer that says nothing.
#[derive(Debug, Serialize)]
struct Empty {}

/// Which process is meant.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Selector {
    pid: Option<Number>,
    tag: Option<String>,
}

impl Selector {
    fn find(selector: Option<&Self>, processes: &Processes) -> Result<u32, ConnectError> {
        match selector {
            Some(Self { pid: Some(Number(pid)), tag: None }) => Ok(*pid),
            Some(Self { pid: None, tag: Some(tag) }) => processes
                .tagged(tag)
                .ok_or_else(|| ConnectError::new(Code::NotFound, format!("process with tag {tag:?} not found"))),
            _ => Err(ConnectError::invalid("the request names no process: a pid or a tag must be selected")),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListRequest {}

#[derive(Debug, Serialize)]
struct ListResponse {
    processes: Vec<ProcessInfo>,
}

#[derive(Debug, Serialize)]
struct ProcessInfo {
    config: ProcessConfig,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

/// Lists all running processes, including those that other clients started.
async fn list(call: Call, _: ListRequest) -> Result<ListResponse, ConnectError> {
    let processes = &call.state().processes;
    let before = processes.now();
    let mut running = call.sandbox().processes().await?;
    running.retain(|process| process.exit_code.is_none());
    processes.retain(before, |pid| running.iter().any(|process| process.pid == pid));
    let described = running.into_iter().map(|process| match processes.describe(process.pid, &process.argv) {
        Some((config, tag)) => ProcessInfo { config, pid: process.pid, tag },
        None => ProcessInfo { config: ProcessConfig::of_argv(process.argv), pid: process.pid, tag: None },
    });
    Ok(ListResponse { processes: described.collect() })
}

/// A terminal.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pty {
    size: Option<PtySize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PtySize {
    cols: Option<Number>,
    rows: Option<Number>,
}

impl Pty {
    fn size(&self) -> Result<TerminalSize, ConnectError> {
        let size = self.size.as_ref().ok_or_else(|| ConnectError::invalid("pty: it has no size"))?;
        let cells = |number: Option<Number>, what: &str| {
            u16::try_from(number.unwrap_or_default().0)
                .map_err(|_| ConnectError::invalid(format!("pty: {what} must be below 65536")))
        };
        Ok(TerminalSize { rows: cells(size.rows, "rows")?, columns: cells(size.cols, "cols")? })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UpdateRequest {
    process: Option<Selector>,
    pty: Option<Pty>,
}

async fn update(call: Call, request: UpdateRequest) -> Result<Empty, ConnectError> {
    let pid = Selector::find(request.process.as_ref(), &call.state().processes)?;
    if let Some(pty) = request.pty {
        let terminal = Some(pty.size()?);
        // Taking part in it with a terminal of that size is what resizes; there is no more to it.
        drop(call.sandbox().attach(AttachSpec { terminal, ..AttachSpec::new(pid, View::End) }).await?);
    }
    Ok(Empty {})
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SignalRequest {
    process: Option<Selector>,
    signal: Option<Signal>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Signal {
    Number(Number),
    Name(String),
}

impl Signal {
    fn number(&self) -> Result<SignalNumber, ConnectError> {
        match self {
            Self::Number(Number(9)) => Ok(SignalNumber::KILL),
            Self::Number(Number(15)) => Ok(SignalNumber::TERM),
            Self::Name(name) if name == "SIGNAL_SIGKILL" => Ok(SignalNumber::KILL),
            Self::Name(name) if name == "SIGNAL_SIGTERM" => Ok(SignalNumber::TERM),
            _ => Err(ConnectError::invalid("the signal must be SIGNAL_SIGKILL or SIGNAL_SIGTERM")),
        }
    }
}

async fn signal(call: Call, request: SignalRequest) -> Result<Empty, ConnectError> {
    let pid = Selector::find(request.process.as_ref(), &call.state().processes)?;
    let signal = request.signal.ok_or_else(|| ConnectError::invalid("the request names no signal"))?.number()?;
    call.sandbox().signal(pid, signal).await?;
    Ok(Empty {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_clients_write_them() {
        let request: SignalRequest =
            serde_json::from_str(r#"{"process":{"pid":7},"signal":"SIGNAL_SIGKILL"}"#).unwrap();
        assert_eq!(request.signal.unwrap().number(), Ok(SignalNumber::KILL));
        let request: SignalRequest = serde_json::from_str(r#"{"process":{"tag":"x"},"signal":15,"new":{}}"#).unwrap();
        assert_eq!(request.signal.unwrap().number(), Ok(SignalNumber::TERM));
        let request: SignalRequest = serde_json::from_str(r#"{"process":null,"signal":"SIGNAL_SIGHUP"}"#).unwrap();
        assert!(request.signal.unwrap().number().is_err());
        let request: UpdateRequest =
            serde_json::from_str(r#"{"process":{"pid":"7"},"pty":{"size":{"cols":80,"rows":24}}}"#).unwrap();
        assert_eq!(request.pty.unwrap().size(), Ok(TerminalSize { rows: 24, columns: 80 }));
        let request: UpdateRequest = serde_json::from_str(r#"{"pty":{"size":{"cols":65536}}}"#).unwrap();
        assert!(request.pty.unwrap().size().is_err());
        serde_json::from_str::<ListRequest>("{}").unwrap();
    }

    #[test]
    fn a_process_is_selected_by_one_thing() {
        let processes = Processes::default();
        let find = |text: &str| {
            let selector: Option<Selector> = serde_json::from_str(text).unwrap();
            Selector::find(selector.as_ref(), &processes).map_err(|error| error.code)
        };
        assert_eq!(find(r#"{"pid":7}"#), Ok(7));
        assert_eq!(find(r#"{"tag":"x"}"#), Err(Code::NotFound));
        for wrong in ["null", "{}", r#"{"pid":7,"tag":"x"}"#] {
            assert_eq!(find(wrong), Err(Code::InvalidArgument), "{wrong}");
        }
    }
}
