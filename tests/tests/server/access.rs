//! What clients can do and find out that have no token of a sandbox, or a key that may only read.

use sandboxvm_tests::{
    home::{Home, eventually},
    server::{Answer, Server, request, small_config},
};
use serde_json::{Value, json};
use std::time::Duration;

const UNKNOWN: &str = "aaaaaaaaaaaaaaaa";

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name}: {value}"))
}

/// Sends a request to envd, or to another port, of a sandbox.
fn ask(server: &Server, id: &str, port: &str, path: &str, token: Option<&str>) -> Answer {
    let mut headers = vec![("e2b-sandbox-id", id), ("e2b-sandbox-port", port)];
    headers.extend(token.map(|token| ("x-access-token", token)));
    let url = format!("{}{path}", server.sandboxes);
    match path.starts_with("/process.") {
        true => request("POST", &url, &headers, Some(("application/json", b"{}".to_vec()))),
        false => request("GET", &url, &headers, None),
    }
}

#[test]
fn a_client_without_a_token_neither_resumes_a_sandbox_nor_learns_that_it_exists() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let lasting = json!({
        "templateID": "base", "timeout": 600, "autoPause": true, "autoResume": { "enabled": true },
    });
    let created = server.create(&lasting);
    let (id, token) = (text(&created, "sandboxID"), text(&created, "envdAccessToken"));
    let state = || server.ask("GET", &format!("/sandboxes/{id}"), None).expect(200).json()["state"].clone();

    // A client may ask whether a sandbox runs. It does not always send the token.
    assert_eq!(ask(&server, id, "49983", "/health", None).status, 204);
    for phase in ["running", "paused"] {
        if phase == "paused" {
            let _ = server.ask("POST", &format!("/sandboxes/{id}/pause"), None).expect(204);
        }
        for (path, given) in [
            ("/process.Process/List", None),
            ("/process.Process/List", Some("x")),
            ("/files?path=/etc/passwd", None),
            ("/files?path=/etc/passwd&signature=v1_x", None),
            ("/metrics", None),
        ] {
            let known = ask(&server, id, "49983", path, given);
            let unknown = ask(&server, UNKNOWN, "49983", path, given);
            assert!(matches!(known.status, 401 | 502), "{path}: {known:?}");
            assert_eq!((known.status, known.body.replace(id, UNKNOWN)), (unknown.status, unknown.body), "{path}");
        }
        assert_eq!(state(), phase);
    }
    let [known, unknown] = [id, UNKNOWN].map(|id| ask(&server, id, "49983", "/health", None));
    assert_eq!((known.status, known.body.replace(id, UNKNOWN)), (unknown.status, unknown.body));
    assert_eq!(known.status, 502);
    assert_eq!(state(), "paused", "a request without a token resumed the sandbox");
    // A request with the token resumes the sandbox.
    assert_eq!(ask(&server, id, "49983", "/process.Process/List", Some(token)).status, 200);
    assert_eq!(state(), "running");
    let _ = server.ask("DELETE", &format!("/sandboxes/{id}"), None).expect(204);
    // A client with the token learns that its sandbox has ended.
    assert_eq!(ask(&server, id, "49983", "/process.Process/List", Some(token)).status, 502);
    server.stop();
    home.assert_nothing_left();
}

#[test]
fn the_code_interpreter_of_a_secure_sandbox_executes_nothing_without_its_token() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let created = server.create(&json!({ "templateID": "base", "timeout": 600 }));
    let (id, token) = (text(&created, "sandboxID"), text(&created, "envdAccessToken"));
    // Nothing listens at the port, so 502 means that the request reached the sandbox.
    for (path, given, status) in [
        ("/execute", None, 401),
        ("/execute", Some("x"), 401),
        ("/contexts/../execute", None, 401),
        ("/execute", Some(token), 502),
        // E2B's clients send the token only with code.
        ("/contexts", None, 502),
    ] {
        let answer = ask(&server, id, "49999", path, given);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert_eq!(answer.body.contains("port is not open"), status == 502, "{path}: {answer:?}");
    }
    assert_eq!(ask(&server, id, "8000", "/execute", None).status, 502, "other ports are public");
    let plain = server.ask("POST", "/sandboxes", Some(&json!({ "templateID": "base", "timeout": 600 })));
    let plain = plain.expect(201).json();
    assert_eq!(
        ask(&server, text(&plain, "sandboxID"), "49999", "/execute", None).status,
        502,
        "a sandbox that is not secure needs no token"
    );
    for one in [id, text(&plain, "sandboxID")] {
        let _ = server.ask("DELETE", &format!("/sandboxes/{one}"), None).expect(204);
    }
    server.stop();
    home.assert_nothing_left();
}

#[test]
fn revoked_tokens_and_expired_keys_are_refused() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let created = server.create(&json!({ "templateID": "base", "timeout": 600 }));
    let (id, token) = (text(&created, "sandboxID"), text(&created, "envdAccessToken"));
    let list = |token: &str| ask(&server, id, "49983", "/process.Process/List", Some(token)).status;
    assert_eq!(list(token), 200);
    let next = server.ask("POST", &format!("/sandboxes/{id}/tokens"), None).expect(201).json();
    assert_eq!((list(token), list(text(&next, "envdAccessToken"))), (401, 200));
    let connected = server.ask("POST", &format!("/v2/sandboxes/{id}/connect"), Some(&json!({ "timeout": 600 })));
    assert_eq!(connected.expect(200).json()["envdAccessToken"], next["envdAccessToken"]);

    let keys = home.cli(["key", "ls", "--json"]).run().succeeds().json();
    let owner = text(&keys[0], "id").to_owned();
    let looker = home.cli(["key", "create", "looker", "--read-only", "--of", &owner]).run().succeeds().out();
    let seen = server.ask_as(looker.trim(), "GET", &format!("/sandboxes/{id}"), None).expect(200).json();
    assert_eq!(seen["state"], "running");
    assert!(seen.get("envdAccessToken").is_none(), "a key that may only read received the token: {seen}");
    for (method, path) in [("POST", "/tokens"), ("DELETE", ""), ("POST", "/connect")] {
        let _ = server.ask_as(looker.trim(), method, &format!("/sandboxes/{id}{path}"), None).expect(403);
    }

    let short = home.cli(["key", "create", "short", "--expires", "1s"]).run().succeeds().out();
    let lasting = home.cli(["key", "create", "lasting", "--expires", "30d"]).run().succeeds().out();
    let expired = || (server.ask_as(short.trim(), "GET", "/v2/sandboxes", None).status == 401).then_some(());
    assert!(eventually(Duration::from_secs(10), expired).is_some());
    let _ = server.ask_as(lasting.trim(), "GET", "/v2/sandboxes", None).expect(200);
    let _ = server.ask("DELETE", &format!("/sandboxes/{id}"), None).expect(204);
    server.stop();
    home.assert_nothing_left();
}
