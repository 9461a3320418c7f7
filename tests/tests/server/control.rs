//! The control plane over HTTP: the states of a sandbox, the separation of keys, and requests that
//! are refused.

use sandboxvm_tests::{
    home::{Home, eventually},
    server::{Answer, Server, load::clients, request, small_config},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

fn id(created: &Value) -> String {
    created["sandboxID"].as_str().expect("a sandbox has an ID").to_owned()
}

#[test]
fn a_sandbox_is_created_paused_to_disk_resumed_forked_and_killed() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let body = json!({ "templateID": "base", "timeout": 600, "metadata": { "user": "1" }, "envVars": { "A": "b" } });
    let created = server.create(&body);
    let id = id(&created);
    assert_eq!(created["templateID"], "base", "{created}");
    assert!(created["envdAccessToken"].as_str().is_some_and(|token| token.len() >= 32), "{created}");
    assert_eq!(home.cli(["exec", &id, "--", "sh", "-c", "echo $A; echo kept > /root/f"]).run().succeeds().out(), "b\n");

    let info = server.ask("GET", &format!("/sandboxes/{id}"), None).expect(200).json();
    assert_eq!(
        (&info["state"], &info["memoryMB"], &info["metadata"]["user"]),
        (&json!("running"), &json!(128), &json!("1"))
    );

    assert_logs_are_read_both_ways(&server, &id);

    // The sandbox is on disk only: it has no process, and is not reported as ended.
    let vmm = home.row(&id);
    assert_eq!(vmm["state"], "running", "{vmm}");
    let _ = server.ask("POST", &format!("/sandboxes/{id}/pause"), None).expect(204);
    let _ = server.ask("POST", &format!("/sandboxes/{id}/pause"), None).expect(409);
    assert_eq!(server.ask("GET", &format!("/sandboxes/{id}"), None).expect(200).json()["state"], "paused");
    assert_eq!(home.row(&id)["state"], "exited", "{}", home.row(&id));
    let _ = home.cli(["prune"]).run().succeeds();
    let paused = server.ask("GET", "/v2/sandboxes?state=paused", None).expect(200).json();
    assert_eq!(paused.as_array().map(Vec::len), Some(1), "{paused}");

    let resumed = server.ask("POST", &format!("/v2/sandboxes/{id}/connect"), Some(&json!({ "timeout": 600 })));
    assert_eq!(resumed.expect(201).json()["sandboxID"], id.as_str());
    let _ = server.ask("POST", &format!("/v2/sandboxes/{id}/connect"), Some(&json!({ "timeout": 60 }))).expect(200);
    assert_eq!(home.cli(["exec", &id, "--", "cat", "/root/f"]).run().succeeds().out(), "kept\n");

    let forked = server.ask("POST", &format!("/sandboxes/{id}/fork"), Some(&json!({ "count": 2, "timeout": 600 })));
    let forked = forked.expect(201).json();
    let copies: Vec<String> =
        forked.as_array().expect("a list").iter().map(|result| self::id(&result["sandbox"])).collect();
    assert_eq!(copies.len(), 2, "{forked}");
    assert_eq!(home.cli(["exec", &copies[1], "--", "cat", "/root/f"]).run().succeeds().out(), "kept\n");

    for one in copies.iter().chain([&id]) {
        let _ = server.ask("DELETE", &format!("/sandboxes/{one}"), None).expect(204);
        let _ = server.ask("DELETE", &format!("/sandboxes/{one}"), None).expect(404);
    }
    server.stop();
    home.assert_nothing_left();
}

/// The sandbox was created and has run one command.
fn assert_logs_are_read_both_ways(server: &Server, id: &str) {
    let logs = |query: &str| {
        let answer = server.ask("GET", &format!("/v2/sandboxes/{id}/logs?{query}"), None).expect(200).json();
        answer["logs"].as_array().expect("a list").clone()
    };
    let messages = |entries: &[Value]| -> Vec<String> {
        entries.iter().map(|entry| entry["message"].as_str().expect("a message").to_owned()).collect()
    };
    let all = logs("");
    assert_eq!(messages(&all), ["created", "exec", "started", "ended"], "{all:#?}");
    assert_eq!(all[1]["level"], "info");
    assert!(all[1]["fields"]["argv"].as_str().is_some_and(|argv| argv.contains("echo kept")), "{all:#?}");
    // An entry has nothing of the host and no hashes.
    let fields = |entry: &Value| entry["fields"].as_object().expect("fields").keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&all[3]), ["exit_code", "pid", "seq", "signal", "timed_out"]);
    let mut backward = logs("direction=backward");
    backward.reverse();
    assert_eq!(backward, all);
    assert_eq!(logs("limit=2"), all[..2]);
    assert_eq!(logs("direction=backward&limit=1"), all[3..]);
    assert_eq!(messages(&logs("search=echo+kept")), ["exec"]);
    assert!(logs("level=warn").is_empty() && logs("cursor=99999999999999").is_empty());
    assert_eq!(logs("cursor=1000"), all);
    assert_eq!(logs("cursor=1000&direction=backward"), Vec::<Value>::new());
    let old = server.ask("GET", &format!("/sandboxes/{id}/logs?start=1000&limit=1"), None).expect(200).json();
    assert_eq!((&old["logs"][0]["line"], &old["logEntries"][0]), (&json!("created"), &all[0]), "{old}");
    let _ = server.ask("GET", &format!("/v2/sandboxes/{id}/logs?direction=sideways"), None).expect(400);
}

#[test]
fn an_expired_sandbox_is_ended_or_paused_and_listings_have_pages() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let short = id(&server.create(&json!({ "templateID": "base", "timeout": 600 })));
    let resting = id(&server.create(&json!({ "templateID": "base", "timeout": 600, "autoPause": true })));
    let first = server.ask("GET", "/v2/sandboxes?limit=1", None).expect(200);
    let next = first.header("x-next-token").expect("there is another page").to_owned();
    let second = server.ask("GET", &format!("/v2/sandboxes?limit=1&nextToken={next}"), None).expect(200);
    assert!(second.header("x-next-token").is_none(), "{second:?}");
    assert_ne!(first.json()[0]["sandboxID"], second.json()[0]["sandboxID"]);
    assert_eq!(server.ask("GET", "/v2/sandboxes?metadata=a%3Db", None).expect(200).json(), json!([]));

    for one in [&short, &resting] {
        let _ = server.ask("POST", &format!("/sandboxes/{one}/timeout"), Some(&json!({ "timeout": 0 }))).expect(204);
    }
    let state = |id: &str| server.ask("GET", &format!("/sandboxes/{id}"), None);
    assert!(eventually(Duration::from_secs(20), || (state(&short).status == 404).then_some(())).is_some());
    let paused = || (state(&resting).expect(200).json()["state"] == "paused").then_some(());
    assert!(eventually(Duration::from_secs(20), paused).is_some(), "{:?}", state(&resting));
    assert_eq!(home.listed(), [resting.as_str()]);
    let _ = server.ask("DELETE", &format!("/sandboxes/{resting}"), None).expect(204);
    server.stop();
    home.assert_nothing_left();
}

#[test]
fn keys_cannot_see_or_use_each_others_sandboxes() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let other = home.cli(["key", "create", "other", "--sandboxes", "1"]).run().succeeds().out();
    let looker = home.cli(["key", "create", "looker", "--read-only"]).run().succeeds().out();
    let (other, looker) = (other.trim(), looker.trim());
    let id = id(&server.create(&json!({ "templateID": "base", "timeout": 600 })));
    let snapshot = server.ask("POST", &format!("/sandboxes/{id}/snapshots"), Some(&json!({ "name": "mine" })));
    let snapshot = snapshot.expect(201).json()["snapshotID"].as_str().expect("an ID").to_owned();

    // A sandbox of another key gives the same response as one that never existed.
    for (method, path) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/pause"),
        ("POST", "/connect"),
        ("POST", "/fork"),
        ("POST", "/snapshots"),
        ("GET", "/metrics"),
        ("GET", "/logs"),
        ("POST", "/refreshes"),
    ] {
        let answer = server.ask_as(other, method, &format!("/sandboxes/{id}{path}"), None).expect(404);
        let unknown = server.ask_as(other, method, &format!("/sandboxes/aaaaaaaaaaaaaaaa{path}"), None).expect(404);
        assert_eq!(answer.body.replace(&id, "aaaaaaaaaaaaaaaa"), unknown.body, "{method} {path}");
    }
    assert_eq!(server.ask_as(other, "GET", "/v2/sandboxes", None).expect(200).json(), json!([]));
    assert_eq!(server.ask_as(other, "GET", "/snapshots", None).expect(200).json(), json!([]));
    let _ = server.ask_as(other, "DELETE", &format!("/templates/{snapshot}"), None).expect(404);
    for template in [snapshot.as_str(), "mine"] {
        let _ = server.ask_as(other, "POST", "/v2/sandboxes", Some(&json!({ "templateID": template }))).expect(404);
    }

    // Nor does it see, remove or mount a volume of another key.
    let named = json!({ "name": "data" });
    let volume = server.ask("POST", "/volumes", Some(&named)).expect(201).json();
    let volume = volume["volumeID"].as_str().expect("an ID");
    for method in ["GET", "DELETE"] {
        let answer = server.ask_as(other, method, &format!("/volumes/{volume}"), None).expect(404);
        let unknown = server.ask_as(other, method, "/volumes/0123456789abcdef0123", None).expect(404);
        assert_eq!(answer.body.replace(volume, "0123456789abcdef0123"), unknown.body, "{method}");
    }
    assert_eq!(server.ask_as(other, "GET", "/volumes", None).expect(200).json(), json!([]));
    let with_volume = json!({ "templateID": "base", "volumeMounts": [{ "name": "data", "path": "/data" }] });
    let _ = server.ask_as(other, "POST", "/v2/sandboxes", Some(&with_volume)).expect(404);
    let _ = server.ask_as(looker, "POST", "/volumes", Some(&named)).expect(403);
    let _ = server.ask("DELETE", &format!("/volumes/{volume}"), None).expect(204);

    // A key has separate limits, which it cannot exceed by requests at the same time.
    let base = json!({ "templateID": "base" });
    let answers: Vec<Answer> = thread::scope(|scope| {
        let ask = || server.ask_as(other, "POST", "/v2/sandboxes", Some(&base));
        let asking: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let (made, full): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), full.len()), (1, 2), "{answers:?}");
    let theirs = made[0].json();
    for full in full {
        assert_eq!(full.status, 429, "{full:?}");
        assert!(full.header("retry-after").is_some() && full.body.contains("has reached its limit"), "{full:?}");
    }
    let _ = server.ask_as(looker, "POST", "/v2/sandboxes", Some(&json!({ "templateID": "base" }))).expect(403);
    let _ = server.ask_as(looker, "GET", "/v2/sandboxes", None).expect(200);

    // The token of one sandbox is not valid for another, and the token is required.
    let health = |token: Option<&str>| {
        let mut headers = vec![("e2b-sandbox-id", id.as_str()), ("content-type", "application/json")];
        headers.extend(token.map(|token| ("x-access-token", token)));
        let url = format!("{}/process.Process/List", server.sandboxes);
        request("POST", &url, &headers, Some(("application/json", b"{}".to_vec()))).status
    };
    assert_eq!(health(theirs["envdAccessToken"].as_str()), 401);
    assert_eq!(health(None), 401);

    // A rotated key is refused immediately, and neither the log nor any file contains a secret.
    let keys = home.cli(["key", "ls", "--json"]).run().succeeds().json();
    let first = keys[0]["id"].as_str().expect("an ID").to_owned();
    let rotated = home.cli(["key", "rotate", &first]).run().succeeds().out();
    let _ = server.ask("GET", "/v2/sandboxes", None).expect(401);
    let list = server.ask_as(rotated.trim(), "GET", "/v2/sandboxes", None).expect(200).json();
    assert_eq!(list[0]["sandboxID"], id.as_str(), "the sandboxes of a rotated key stay its own: {list}");
    let token = theirs["envdAccessToken"].as_str().expect("a token");
    for secret in [server.key(), other, looker, rotated.trim(), token] {
        assert!(!server.log().contains(secret), "a secret is in the log");
        let files = std::fs::read_to_string(home.path().join("server/keys.json")).expect("the keys");
        assert!(!files.contains(secret), "a secret is in a file");
    }
}

#[test]
fn malformed_requests_are_answered_and_delay_no_others() {
    let Some(home) = Home::with_kvm() else { return };
    let config = format!("requests_per_second = 1000\n{}", small_config());
    let server = Server::start(&home, &config);
    let post = |path: &str, kind: &str, body: &str| {
        let url = format!("{}{path}", server.api);
        request("POST", &url, &[("x-api-key", server.key())], Some((kind, body.as_bytes().to_vec())))
    };
    let message = |answer: &Answer| {
        let json = answer.json();
        assert_eq!(json["code"], answer.status, "{answer:?}");
        json["message"].as_str().expect("a message").to_owned()
    };
    for (kind, body, status) in [
        ("application/json", "{", 400),
        ("application/json", "[]", 422),
        ("application/json", "{\"templateID\": 3}", 422),
        ("application/json", "{\"templateID\": \"base\", \"timeout\": -1}", 422),
        ("application/json", "{\"templateID\": \"base\", \"timeout\": 99999999}", 400),
        ("application/json", "{\"templateID\": \"../../etc\"}", 404),
        ("application/json", "{\"templateID\": \"base\", \"envVars\": {\"A=B\\u0000\": \"c\"}}", 400),
        ("application/json", "{\"templateID\": \"base\", \"network\": {\"allowOut\": [\"8.8.8.8\"]}}", 403),
        ("application/json", "{\"templateID\": \"base\", \"network\": {\"allowOut\": [\"a.example\"]}}", 400),
        ("application/json", "{\"templateID\": \"base\", \"network\": {\"denyOut\": [\"a.example\"]}}", 400),
        ("application/json", "{\"templateID\": \"base\", \"network\": {\"denyIn\": [\"0.0.0.0/0\"]}}", 501),
        ("application/json", "{\"templateID\": \"base\", \"volumeMounts\": [{}]}", 422),
        ("text/plain", "{\"templateID\": \"base\"}", 415),
    ] {
        let answer = post("/v2/sandboxes", kind, body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(!message(&answer).is_empty());
    }
    let large = format!("{{\"templateID\": \"base\", \"metadata\": {{\"a\": \"{}\"}}}}", "x".repeat(2 << 20));
    assert_eq!(post("/v2/sandboxes", "application/json", &large).status, 413);
    for path in
        ["/nothing", "/sandboxes/../../etc/passwd", "/sandboxes/%2e%2e%2fx", "/sandboxes/%00", "/sandboxes/a%0d%0ab"]
    {
        let answer = server.ask("GET", path, None);
        assert!(matches!(answer.status, 400 | 404 | 501), "{path}: {answer:?}");
    }
    assert_eq!(server.ask("PATCH", "/v2/sandboxes", None).status, 405);
    for key in ["", "e2b_0000000000000000000000000000000000000000", "x", &"k".repeat(5000)] {
        let answer = server.ask_as(key, "GET", "/v2/sandboxes", None);
        assert_eq!((answer.status, answer.json()["code"].as_u64()), (401, Some(401)), "{answer:?}");
    }
    assert_eq!(request("GET", &format!("{}/v2/sandboxes", server.api), &[], None).status, 401);

    // Addresses that name no sandbox.
    for (headers, status) in [
        (vec![], 400),
        (vec![("e2b-sandbox-id", "../../etc")], 400),
        // The same response as for an existing sandbox that requires a token.
        (vec![("e2b-sandbox-id", "aaaaaaaaaaaaaaaa")], 401),
        (vec![("e2b-sandbox-id", "aaaaaaaaaaaaaaaa"), ("e2b-sandbox-port", "99999")], 400),
    ] {
        let answer = request("GET", &format!("{}/files?path=/etc/passwd", server.sandboxes), &headers, None);
        assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
    }

    // Not HTTP, too much data, and a client that starts a request and waits: only this connection
    // is affected.
    for (bytes, expected) in [
        (b"\x16\x03\x01\x02\x00 hello\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(200 << 10)).into_bytes(), "HTTP/1.1 431"),
        (
            b"POST /v2/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nxyz"
                .to_vec(),
            "HTTP/1.1 4",
        ),
    ] {
        let mut stream = TcpStream::connect(server.api.trim_start_matches("http://")).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        // The server may close the connection before it has read everything.
        let _ = stream.write_all(&bytes);
        let mut answer = [0; 64];
        let n = stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..n]);
        assert!(answer.is_empty() || answer.starts_with(expected), "{answer}");
    }
    let waiting: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(server.api.trim_start_matches("http://")).expect("the server listens");
            stream.write_all(b"GET /v2/sandboxes HTTP/1.1\r\n").expect("the server reads");
            stream
        })
        .collect();
    let _ = server.ask("GET", "/v2/sandboxes", None).expect(200);
    drop(waiting);
    assert!(home.listed().is_empty());
}

#[test]
fn keys_are_limited_to_their_rate_and_served_after_retry_after() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &format!("requests_per_second = 2\n{}", small_config()));
    let refused = (0..200).map(|_| server.ask("GET", "/templates", None)).find(|answer| answer.status == 429);
    let refused = refused.expect("200 requests in a row exceed 2 per second over ten seconds");
    let seconds: u64 =
        refused.header("retry-after").and_then(|text| text.parse().ok()).expect("Retry-After in seconds");
    std::thread::sleep(Duration::from_secs(seconds));
    let _ = server.ask("GET", "/templates", None).expect(200);
    let other = home.cli(["key", "create", "other"]).run().succeeds().out();
    let _ = server.ask_as(other.trim(), "GET", "/templates", None).expect(200);
}

#[test]
fn concurrent_clients_see_only_their_own_sandboxes() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &format!("requests_per_second = 1000\n{}", small_config()));
    assert_eq!(clients(&server, 3, 3).len(), 3);
    server.stop();
    home.assert_nothing_left();
}

#[test]
fn a_request_is_traced_to_a_collector() {
    let Some(home) = Home::with_kvm() else { return };
    let collector = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = format!("http://{}", collector.local_addr().expect("the collector listens"));
    let server = Server::start_with(&home, &small_config(), &["--otlp", &address]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("x-api-key", server.key()), ("traceparent", parent.as_str())];
    let _ = request("GET", &format!("{}/v2/sandboxes?metadata=secret%3Dquery", server.api), &headers, None).expect(200);
    let received = thread::spawn(move || {
        let (mut stream, _) = collector.accept().expect("the server exports");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut received = Vec::new();
        let mut buffer = [0; 4096];
        // The name of the service comes before all spans, and the route is in a span.
        while !contains(&received, b"/v2/sandboxes") || !contains(&received, &hex(trace)) {
            match stream.read(&mut buffer) {
                Ok(n @ 1..) => received.extend(&buffer[..n]),
                _ => break,
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        received
    });
    let key = server.key().to_owned();
    server.stop();
    let received = received.join().expect("the collector");
    assert!(received.starts_with(b"POST /v1/traces "), "{}", String::from_utf8_lossy(&received));
    for wanted in [&b"sandboxvm"[..], b"/v2/sandboxes", b"http.response.status_code", &hex(trace)] {
        assert!(contains(&received, wanted), "{wanted:?} is not in {}", String::from_utf8_lossy(&received));
    }
    for secret in [key.as_bytes(), b"query"] {
        assert!(!contains(&received, secret), "a secret is in a trace");
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}
