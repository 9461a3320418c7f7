//! Messages of `sandboxvm mcp` over stdio, line by line: every request gets exactly one response,
//! whatever other lines there are and however the conversation ends, and nothing is left behind.

use rustix::process::Signal;
use sandboxvm_tests::{cli::Running, home::Home};
use serde_json::{Value, json};
use std::time::Duration;

const SMALL_SANDBOX: &str = r#"{"name": "mcp", "memory_mib": 128}"#;

fn initialize() -> String {
    let params = json!({
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": { "name": "test", "version": "1" },
    });
    let initialize = json!({ "jsonrpc": "2.0", "id": "begin", "method": "initialize", "params": params });
    format!("{initialize}\n{}\n", json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))
}

fn call(id: u32, tool: &str, arguments: &Value) -> String {
    let params = json!({ "name": tool, "arguments": arguments });
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params }))
}

fn messages(stdout: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not a message: {line}"))).collect()
}

/// Returns the only response to a request.
fn answer<'a>(messages: &'a [Value], id: &Value) -> &'a Value {
    let answers: Vec<&Value> = messages.iter().filter(|message| &message["id"] == id).collect();
    assert_eq!(answers.len(), 1, "answers to {id}: {answers:?}");
    answers[0]
}

fn code(message: &Value) -> i64 {
    message["error"]["code"].as_i64().unwrap_or_else(|| panic!("not an error: {message}"))
}

#[test]
fn every_request_gets_one_response() {
    let Some(home) = Home::with_kvm() else { return };
    let mut input = Vec::new();
    input.extend_from_slice(b"nonsense\n\n{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n");
    input.extend_from_slice(br#"{"jsonrpc":"2.0","id":"early","method":"initialize","params":{"protocolVersion":7}}"#);
    input.push(b'\n');
    input.extend_from_slice(initialize().as_bytes());
    input.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":90,\"method\":\"\xff\"}\n");
    input.extend(std::iter::repeat_n(b'x', (16 << 20) + 1));
    input.push(b'\n');
    input.extend_from_slice(b"{\"id\":91,\"method\":\"ping\"}\n[]\n");
    for (id, params) in [
        (1, json!({})),
        (2, json!([])),
        (3, json!({ "name": 7 })),
        (4, json!({ "name": "no_such_tool" })),
        (5, json!({ "name": "sandbox_run", "arguments": [] })),
    ] {
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
        input.extend_from_slice(format!("{request}\n").as_bytes());
    }
    input.extend_from_slice(call(6, "sandbox_run", &json!({})).as_bytes());
    input
        .extend_from_slice(call(7, "sandbox_run", &json!({ "sandbox": "x", "command": "x", "unknown": 1 })).as_bytes());
    input.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":8,\"method\":\"no/such\"}\n");
    // The last line has no line break.
    input.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"tools/list\"}");

    let ended = home.cli(["mcp"]).input(input).run().succeeds();
    let messages = messages(&ended.stdout);
    for id in 1..=5 {
        assert_eq!(code(answer(&messages, &json!(id))), -32602, "{id}");
    }
    // An invalid argument of a tool is reported in the result of the tool, so that the model sees
    // it.
    for id in 6..=7 {
        assert_eq!(answer(&messages, &json!(id))["result"]["isError"], true, "{id}");
    }
    assert_eq!(code(answer(&messages, &json!("early"))), -32602);
    assert_eq!(code(answer(&messages, &json!(8))), -32601);
    assert_eq!(code(answer(&messages, &json!(91))), -32600);
    assert!(answer(&messages, &json!("begin"))["result"].is_object());
    assert!(answer(&messages, &json!(9))["result"]["tools"].is_array());
    let unnamed: Vec<i64> = messages.iter().filter(|message| message["id"].is_null()).map(code).collect();
    assert_eq!(unnamed, [-32700, -32700, -32700, -32600], "not JSON, not UTF-8, too long, a batch");
    assert_eq!(messages.len(), 12 + unnamed.len(), "{messages:?}");
}

/// Starts a server with one sandbox, in which a command runs as request 2.
fn running_command(home: &Home, command: &str) -> Running {
    let mut server = home.cli(["mcp"]).open_stdin().deadline(Duration::from_secs(90)).spawn();
    server.write(initialize().as_bytes());
    let arguments: Value = serde_json::from_str(SMALL_SANDBOX).expect("JSON");
    server.write(call(1, "sandbox_create", &arguments).as_bytes());
    server.wait_for_stdout("\"id\":1,");
    // The ID 2 cannot be used again until its response.
    let command = format!("touch /tmp/begun; {command}");
    server.write(call(2, "sandbox_run", &json!({ "sandbox": "mcp", "command": command })).as_bytes());
    server.write(call(2, "sandbox_list", &json!({})).as_bytes());
    server.wait_for_stdout("has no answer yet");
    let begun = json!({ "sandbox": "mcp", "command": "until [ -e /tmp/begun ]; do sleep 0.1; done; echo it-began" });
    server.write(call(3, "sandbox_run", &begun).as_bytes());
    server.wait_for_stdout("it-began");
    server
}

#[test]
fn a_running_command_is_answered_after_the_input_ended() {
    let Some(home) = Home::with_kvm() else { return };
    let mut server = running_command(&home, "sleep 3; echo finished");
    server.close_stdin();
    let ended = server.finish().succeeds();
    let messages = messages(&ended.stdout);
    let done = &answer(&messages, &json!(2))["result"]["structuredContent"];
    assert_eq!((&done["stdout"], &done["exit_code"]), (&json!("finished\n"), &json!(0)));
    home.assert_nothing_left();
}

#[test]
fn a_running_command_is_cancelled_and_answered_at_the_servers_end() {
    let Some(home) = Home::with_kvm() else { return };
    let mut server = running_command(&home, "sleep 100000");
    server.close_stdin();
    server.signal(Signal::TERM);
    let ended = server.finish();
    let messages = messages(&ended.stdout);
    let given_up = &answer(&messages, &json!(2))["result"];
    assert!(given_up["isError"] == true && given_up.to_string().contains("cancelled"), "{given_up}");
    home.assert_nothing_left();
}
