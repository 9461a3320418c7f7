//! Events of a process as clients read them: it started, it wrote, it ended.

use crate::sandbox_plane::envd::connect::{Code, ConnectError, json::Base64};
use sandboxvm_manager::ExitStatus;
use serde::Serialize;

/// One message of a stream.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    event: Kind,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Start { pid: u32 },
    Data(Data),
    End(End),
    Keepalive {},
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Data {
    Stdout(Base64),
    Stderr(Base64),
    Pty(Base64),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    exit_code: i32,
    exited: bool,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Event {
    pub(super) fn start(pid: u32) -> Self {
        Self { event: Kind::Start { pid } }
    }

    pub(super) fn keepalive() -> Self {
        Self { event: Kind::Keepalive {} }
    }

    pub(super) fn stdout(bytes: Vec<u8>) -> Self {
        Self { event: Kind::Data(Data::Stdout(Base64(bytes))) }
    }

    pub(super) fn stderr(bytes: Vec<u8>) -> Self {
        Self { event: Kind::Data(Data::Stderr(Base64(bytes))) }
    }

    pub(super) fn pty(bytes: Vec<u8>) -> Self {
        Self { event: Kind::Data(Data::Pty(Base64(bytes))) }
    }

    /// In the words of the Go program that envd is. One whose time ran out has no such end.
    pub(super) fn end(status: ExitStatus) -> Result<Self, ConnectError> {
        let (exit_code, exited, status) = match status {
            ExitStatus::Code(code) => (i32::from(code), true, format!("exit status {code}")),
            ExitStatus::Signal(signal) => (-1, false, signal_text(signal.get())),
            ExitStatus::TimedOut => {
                return Err(ConnectError::new(
                    Code::DeadlineExceeded,
                    "the process ran out of its time, Connect-Timeout-Ms, and was killed",
                ));
            }
        };
        let error = (exit_code != 0).then(|| status.clone());
        Ok(Self { event: Kind::End(End { exit_code, exited, status, error }) })
    }
}

fn signal_text(signal: u8) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        6 => "aborted",
        8 => "floating point exception",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal: signal {other}"),
    };
    format!("signal: {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::SignalNumber;

    fn text(event: &Event) -> String {
        serde_json::to_string(event).unwrap()
    }

    #[test]
    fn events_are_written_as_clients_read_them() {
        assert_eq!(text(&Event::start(7)), r#"{"event":{"start":{"pid":7}}}"#);
        assert_eq!(text(&Event::stdout(b"hi".to_vec())), r#"{"event":{"data":{"stdout":"aGk="}}}"#);
        assert_eq!(text(&Event::stderr(b"hi".to_vec())), r#"{"event":{"data":{"stderr":"aGk="}}}"#);
        assert_eq!(text(&Event::pty(vec![0xff])), r#"{"event":{"data":{"pty":"/w=="}}}"#);
        assert_eq!(text(&Event::keepalive()), r#"{"event":{"keepalive":{}}}"#);
    }

    #[test]
    fn process_ends_are_reported_as_envd_does() {
        let end = |status| Event::end(status).map(|event| text(&event));
        assert_eq!(
            end(ExitStatus::Code(0)).unwrap(),
            r#"{"event":{"end":{"exitCode":0,"exited":true,"status":"exit status 0"}}}"#
        );
        let failed = r#""exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}"#;
        assert!(end(ExitStatus::Code(3)).unwrap().contains(failed));
        let killed = r#""exitCode":-1,"exited":false,"status":"signal: killed","error":"signal: killed"}"#;
        assert!(end(ExitStatus::Signal(SignalNumber::KILL)).unwrap().contains(killed));
        assert_eq!(end(ExitStatus::TimedOut).unwrap_err().code, Code::DeadlineExceeded);
    }
}
