//! A client of the sandbox plane without an SDK, which implements the Connect protocol itself, for
//! one sandbox.

use crate::server::{Answer, Server, request};
use serde_json::{Value, json};

/// A sandbox of a server, and its token.
#[derive(Debug, Clone)]
pub struct Envd {
    base: String,
    /// ID of the sandbox.
    pub id: String,
    token: String,
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit code.
    pub code: i64,
    /// Output on stdout.
    pub stdout: String,
}

impl Envd {
    /// Returns the sandbox that the response `created` describes.
    ///
    /// # Panics
    /// Panics if the response describes no sandbox.
    #[must_use]
    pub fn of(server: &Server, created: &Value) -> Self {
        let text = |name: &str| created[name].as_str().unwrap_or_else(|| panic!("no {name}: {created}")).to_owned();
        Self { base: server.sandboxes.clone(), id: text("sandboxID"), token: text("envdAccessToken") }
    }

    fn ask(&self, method: &str, path: &str, body: Option<(&str, Vec<u8>)>) -> Answer {
        let headers =
            [("e2b-sandbox-id", self.id.as_str()), ("e2b-sandbox-port", "49983"), ("x-access-token", &self.token)];
        request(method, &format!("{}{path}", self.base), &headers, body)
    }

    /// Runs a shell command to its end.
    ///
    /// # Panics
    /// Panics unless the response is a complete stream of events.
    #[must_use]
    pub fn run(&self, command: &str) -> Ran {
        let start = json!({ "process": { "cmd": "/bin/bash", "args": ["-c", command] }, "stdin": false }).to_string();
        let mut frame = vec![0];
        frame.extend(u32::try_from(start.len()).expect("a short command").to_be_bytes());
        frame.extend(start.as_bytes());
        let answer = self.ask("POST", "/process.Process/Start", Some(("application/connect+json", frame)));
        let answer = answer.expect(200);
        let (mut rest, mut ran) = (answer.body.as_bytes(), Ran { code: -1, stdout: String::new() });
        while let [flags, a, b, c, d, body @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let message: Value = serde_json::from_slice(&body[..length]).expect("events are JSON");
            assert!(message.get("error").is_none(), "{message}");
            if let Some(data) = message["event"]["data"]["stdout"].as_str() {
                ran.stdout += &unbase64(data);
            }
            if let Some(end) = message["event"].get("end") {
                // The JSON of proto3 omits zeros.
                ran.code = end.get("exitCode").and_then(Value::as_i64).unwrap_or(0);
            }
            rest = &body[length..];
            assert!(*flags & 2 == 0 || rest.is_empty(), "data follows the end");
        }
        ran
    }

    /// Writes a file.
    pub fn write(&self, path: &str, content: &[u8]) {
        let path = format!("/files?path={path}&username=user");
        let _ = self.ask("POST", &path, Some(("application/octet-stream", content.to_vec()))).expect(200);
    }

    /// Reads a text file.
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        self.ask("GET", &format!("/files?path={path}&username=user"), None).expect(200).body
    }
}

/// Decodes base64 with padding to text (RFC 4648, section 4).
fn unbase64(text: &str) -> String {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64: {text}"),
    };
    let digits: Vec<u8> = text.trim_end_matches('=').bytes().map(digit).collect();
    let bytes = digits.chunks(4).flat_map(|group| {
        let bits = group.iter().fold(0u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    });
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
        assert_eq!(unbase64("aGVsbG8="), "hello");
        assert_eq!(unbase64("aGVsbG8h"), "hello!");
        assert_eq!(unbase64(""), "");
    }
}
