//! Tenants of one server: what one key or one sandbox does at its worst costs the others no more than its share.

use sandboxvm_tests::{
    envd::Envd,
    home::{Home, eventually},
    server::{Server, request, small_config},
};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A connection with a request whose body does not come.
fn unfinished(base: &str, head: &str) -> TcpStream {
    let address = base.strip_prefix("http://").expect("a server without TLS");
    let mut stream = TcpStream::connect(address).expect("the server takes connections");
    let head = format!("{head}\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("the server reads requests");
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(300))).expect("a timeout can be set");
    // A server that closes while its client still sends resets the connection.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn requests_without_bodies_keep_no_other_key_out_and_are_given_up() {
    let Some(home) = Home::with_kvm() else { return };
    let shares = "concurrent_requests = 16\nconcurrent_requests_per_key = 8\nconcurrent_requests_per_sandbox = 4\n";
    let config = format!("body_timeout = 40\nrequests_per_second = 1000\n{shares}{}", small_config());
    let server = Server::start(&home, &config);
    let other = home.cli(["key", "create", "other"]).run().succeeds().out();
    let other = other.trim();
    let base = json!({ "templateID": "base", "timeout": 600 });
    let [mine, second] = [server.create(&base), server.create(&base)];
    let theirs = server.ask_as(other, "POST", "/v2/sandboxes", Some(&base)).expect(201).json();

    let key = server.key();
    let create = format!("POST /v2/sandboxes HTTP/1.1\r\nX-API-Key: {key}");
    let control: Vec<TcpStream> = (0..32).map(|_| unfinished(&server.api, &create)).collect();
    let mut sandbox = Vec::new();
    for created in [&mine, &second] {
        let [id, token] = ["sandboxID", "envdAccessToken"].map(|name| created[name].as_str().expect("a text"));
        let list = format!("POST /process.Process/List HTTP/1.1\r\nE2b-Sandbox-Id: {id}\r\nX-Access-Token: {token}");
        sandbox.extend((0..16).map(|_| unfinished(&server.sandboxes, &list)));
    }
    // When one more of the key's own is refused, it has all that it may have.
    let wrong = json!({ "templateID": "no-such-template" });
    let refused = || (server.ask("POST", "/v2/sandboxes", Some(&wrong)).status == 429).then_some(());
    assert!(eventually(Duration::from_secs(15), refused).is_some());
    let refused = || {
        let [id, token] = ["sandboxID", "envdAccessToken"].map(|name| mine[name].as_str().expect("a text"));
        let headers = [("e2b-sandbox-id", id), ("x-access-token", token)];
        let url = format!("{}/process.Process/List", server.sandboxes);
        let list = request("POST", &url, &headers, Some(("application/json", b"{}".to_vec())));
        (list.status == 429).then_some(())
    };
    assert!(eventually(Duration::from_secs(15), refused).is_some());

    // The other key has its share on both planes.
    assert_eq!(server.ask_as(other, "POST", "/v2/sandboxes", Some(&wrong)).status, 404);
    assert_eq!(Envd::of(&server, &theirs).run("echo here").stdout, "here\n");

    // Those that had a place are given up in the end, and their places are free.
    let answers: Vec<String> = control.into_iter().chain(sandbox).map(answer).collect();
    let count = |status: &str| answers.iter().filter(|answer| answer.contains(status)).count();
    assert_eq!(count("HTTP/1.1 408"), 8, "{answers:#?}");
    assert_eq!(count("HTTP/1.1 429"), 24 + 24, "{answers:#?}");
    assert_eq!(server.ask("POST", "/v2/sandboxes", Some(&wrong)).status, 404);
    assert_eq!(Envd::of(&server, &mine).run("echo here").stdout, "here\n");
    for created in [&mine, &second] {
        let _ = server.ask("DELETE", &format!("/sandboxes/{}", created["sandboxID"].as_str().unwrap()), None);
    }
    let _ = server.ask_as(other, "DELETE", &format!("/sandboxes/{}", theirs["sandboxID"].as_str().unwrap()), None);
    server.stop();
    home.assert_nothing_left();
}
