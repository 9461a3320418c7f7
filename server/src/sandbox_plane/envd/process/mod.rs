//! `process.Process`: processes of a sandbox, started, found again, fed, signalled.
//!
//! The guest's agent keeps them, so they outlive clients and this server. Kept here (`table`) are the descriptions that their
//! clients gave of them, and the way to their input.

mod config;
mod events;
mod input;
mod pty;
mod selector;
mod send_input;
mod start;
pub(super) mod table;

use super::connect::{
    self, Call, ConnectError,
    json::{Empty, Number},
};
use axum::{Router, body::Body, http::Request, routing::post};
use config::ProcessConfig;
use pty::Pty;
use sandboxvm_manager::{AttachSpec, SignalNumber, View};
use selector::Selector;
use serde::{Deserialize, Serialize};

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
    use sandboxvm_manager::TerminalSize;

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
}
