//! Tenants of one server: what one key or one sandbox does at its worst costs the others no more than its share.

use sandboxvm_tests::{
    home::{Home, eventually},
    server::{
        Server,
        attack::{Attack, Request, Seen, Then, during, freeze},
        envd::Envd,
        load::{Times, client},
        request, small_config,
    },
};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
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

/// What one key may have at a time, far below what the server has.
const SHARES: &str = "concurrent_requests = 48\nconcurrent_requests_per_key = 24\nconcurrent_requests_per_sandbox = 8\n\
    streams = 64\nstreams_per_key = 40\nstreams_per_sandbox = 16\nconnections = 512\nconnections_per_address = 224\n\
    snapshots_per_key = 3\naudit_per_sandbox = 1\n";
/// As much as the server has.
const NO_SHARES: &str = "concurrent_requests = 48\nconcurrent_requests_per_key = 48\nconcurrent_requests_per_sandbox = 48\n\
    streams = 64\nstreams_per_key = 64\nstreams_per_sandbox = 64\nconnections = 512\nconnections_per_address = 512\n";

fn config(shares: &str) -> String {
    format!("body_timeout = 40\nrequests_per_second = 1000\n{shares}{}", small_config())
}

fn text<'v>(created: &'v Value, name: &str) -> &'v str {
    created[name].as_str().unwrap_or_else(|| panic!("no {name}: {created}"))
}

/// A message of the Connect protocol's streams.
fn frame(message: &Value) -> Vec<u8> {
    let message = message.to_string();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).expect("a short message").to_be_bytes());
    frame.extend(message.as_bytes());
    frame
}

/// The sandboxes that one key has for its attacks.
struct Arsenal {
    key: String,
    /// Its agent never answers.
    frozen: Value,
    /// The same, and it rests on disk.
    paused: Value,
    /// A snapshot of the first.
    snapshot: String,
    /// Its processes write without end, and its server keeps connections.
    busy: Value,
    /// Its server and processes write without end. The connections of `busy` would take their places.
    flooding: Value,
    /// Fills its audit log.
    logger: Value,
}

impl Arsenal {
    fn new(home: &Home, server: &Server) -> Self {
        let base = json!({ "templateID": "base", "timeout": 3000 });
        let [frozen, paused, busy, flooding, logger] = [(); 5].map(|()| server.create(&base));
        for serving in [&busy, &flooding] {
            serve(&Envd::of(server, serving));
        }
        freeze(home, &[text(&frozen, "sandboxID"), text(&paused, "sandboxID")]);
        let path = |of: &Value, what: &str| format!("/sandboxes/{}/{what}", text(of, "sandboxID"));
        let _ = server.ask("POST", &path(&paused, "pause"), None).expect(204);
        let snapshot = server.ask("POST", &path(&frozen, "snapshots"), None).expect(201).json();
        let key = server.key().to_owned();
        Self { key, frozen, paused, snapshot: text(&snapshot, "snapshotID").to_owned(), busy, flooding, logger }
    }

    /// Everything at once. `theirs` is a running sandbox of another key, `resting` a paused one.
    fn attacks(&self, server: &Server, theirs: &str, resting: &str) -> Vec<Attack> {
        let api = |name, count, then, first| Attack::on_api(server, name, count, then, first);
        let plane = |name, count, then, first| Attack::on_sandboxes(server, name, count, then, first);
        let control = |path: &str| Request::new("POST", path).with("X-API-Key", &self.key);
        let path = |of: &Value, what: &str| format!("/sandboxes/{}/{what}", text(of, "sandboxID"));
        let start = json!({ "templateID": self.snapshot, "timeout": 3000 }).to_string();
        let list = |of: &Value| to(of, "49983", "POST", "/process.Process/List");
        let run = |of: &Value, command: &str, argument: &str| {
            let process = json!({ "cmd": command, "args": [argument] });
            let message = frame(&json!({ "process": process, "stdin": false }));
            to(of, "49983", "POST", "/process.Process/Start").whole("application/connect+json", &message)
        };
        let stranger = |id: &str, method: &str, path: &str| {
            Request::new(method, path).with("E2b-Sandbox-Id", id).with("E2b-Sandbox-Port", 49983)
        };
        let (json, yes) = ("application/json", "/usr/bin/yes");
        let upgraded = to(&self.busy, "8000", "GET", "/").with("Connection", "Upgrade").with("Upgrade", "echo");
        let forged = format!("/files?path=/etc/passwd&username=user&signature=v1_{}", "A".repeat(43));
        vec![
            // A3
            api("starts of silent guests", 8, Then::Wait, control("/v2/sandboxes").whole(json, start.as_bytes())),
            api("resumes of a silent guest", 2, Then::Wait, control(&path(&self.paused, "connect")).whole(json, b"{}")),
            // A4, A11
            api(BODIES, 64, Then::Wait, control("/v2/sandboxes").with("Content-Length", 1000).head()),
            api("bodies that drip", 16, Then::Drip, control("/v2/sandboxes").with("Content-Length", 1000).head()),
            plane(UNANSWERED, 64, Then::Wait, list(&self.frozen).whole(json, b"{}")),
            plane(
                "messages that do not come",
                8,
                Then::Wait,
                list(&self.logger).with("Content-Type", json).with("Content-Length", 100).head(),
            ),
            // A5
            api("silent connections", 100, Then::Wait, Vec::new()),
            api("heads that drip", 32, Then::Drip, b"GET /health HTTP/1.1\r\nX: ".to_vec()),
            plane("silent connections to sandboxes", 100, Then::Wait, b"P".to_vec()),
            // A6
            api("snapshots", 2, Then::Repeat, control(&path(&self.busy, "snapshots")).whole(json, b"{}")),
            plane("lines in audit logs", 2, Then::Repeat, run(&self.logger, "/bin/true", &"x".repeat(60_000))),
            // A9
            plane("health without a token", 4, Then::Repeat, stranger(resting, "GET", "/health").head()),
            plane(
                "wrong tokens",
                4,
                Then::Repeat,
                stranger(theirs, "POST", "/process.Process/List").with("X-Access-Token", "wrong").whole(json, b"{}"),
            ),
            plane("signatures of no sandbox", 4, Then::Repeat, Request::new("GET", &forged).head()),
            plane("signatures of another's sandbox", 4, Then::Repeat, stranger(theirs, "GET", &forged).head()),
            api("wrong keys", 4, Then::Repeat, Request::new("GET", "/v2/sandboxes").with("X-API-Key", "wrong").head()),
            // A10, and answers of a port without end.
            plane(UPGRADED, 64, Then::Wait, upgraded.head()),
            plane(FLOODS, 4, Then::Read, to(&self.flooding, "8000", "GET", "/").head()),
            // Answers without end, unread and read.
            plane("output that is not read", 8, Then::Wait, run(&self.busy, yes, "y")),
            plane("floods of output", 2, Then::Read, run(&self.flooding, yes, "y")),
        ]
    }
}

const UPGRADED: &str = "upgraded connections";
const FLOODS: &str = "floods of a port";
/// A server of the guest on port 8000, which changes to a protocol that is silent, or answers without end.
const SERVER: &str = r#"use IO::Socket::INET; $SIG{CHLD} = "IGNORE";
    my $server = IO::Socket::INET->new(Listen => 64, LocalAddr => "127.0.0.1", LocalPort => 8000) or die;
    while (my $client = $server->accept) { next if fork; my $head = "";
        while (<$client>) { $head .= $_; last if /^\r?$/ }
        if ($head =~ /upgrade/i) {
            syswrite $client, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
            1 while <$client>; exit }
        syswrite $client, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n";
        1 while syswrite $client, "y" x 65536; exit }"#;
const BODIES: &str = "bodies that do not come";
const UNANSWERED: &str = "requests that are not answered";

/// Starts the server in a sandbox.
fn serve(sandbox: &Envd) {
    let serving = sandbox.run(&format!("setsid perl -e '{SERVER}' >/dev/null 2>&1 </dev/null &"));
    assert_eq!(serving.code, 0, "{serving:?}");
    // It listens (state 0A) on port 8000 (1F40) soon.
    let listens =
        "for i in $(seq 200); do grep -q ':1F40 00000000:0000 0A' /proc/net/tcp && exit; sleep 0.1; done; exit 1";
    let listening = sandbox.run(listens);
    assert_eq!(listening.code, 0, "{listening:?}");
}

/// A connection that asks the guest's server for another protocol, and the beginning of the answer.
fn upgraded(server: &Server, created: &Value) -> (TcpStream, String) {
    let address = server.sandboxes.strip_prefix("http://").expect("a server without TLS");
    let mut stream = TcpStream::connect(address).expect("the server takes connections");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout can be set");
    let request = to(created, "8000", "GET", "/").with("Connection", "Upgrade").with("Upgrade", "echo");
    stream.write_all(&request.head()).expect("the server reads requests");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("the server answers");
    (stream, String::from_utf8_lossy(&answer).into_owned())
}

/// A request to a sandbox, with its token.
fn to(created: &Value, port: &str, method: &str, path: &str) -> Request {
    Request::new(method, path)
        .with("E2b-Sandbox-Id", text(created, "sandboxID"))
        .with("E2b-Sandbox-Port", port)
        .with("X-Access-Token", text(created, "envdAccessToken"))
}

/// True when each attack has all that it can get, without which the test would prove nothing.
fn are_in_force(attacks: &[Attack]) -> bool {
    let all = |names: &[&str], is: fn(&Seen) -> bool| {
        names.iter().all(|name| attacks.iter().any(|attack| attack.name == *name && is(&attack.seen)))
    };
    all(&[BODIES, UNANSWERED, UPGRADED, "snapshots"], |seen| seen.refused() > 0)
        && all(&["output that is not read", UPGRADED], |seen| seen.served() > 0)
        && all(&["wrong tokens", "wrong keys", "health without a token"], |seen| seen.failed() > 0)
        && all(&["floods of output", FLOODS], |seen| seen.bytes() > 0)
        && all(
            &["starts of silent guests", "resumes of a silent guest", "heads that drip", "bodies that drip"],
            |seen| seen.held() > 0,
        )
}

fn report(quiet: &[Times], attacked: &[Times]) -> String {
    let mut table = "milliseconds           quiet: median   most   attacked: median   most\n".to_owned();
    type Kind = (&'static str, fn(&Times) -> Vec<Duration>);
    let kinds: [Kind; 4] = [
        ("create", |times| vec![times.create]),
        ("command", |times| times.commands.clone()),
        ("files", |times| vec![times.files]),
        ("kill", |times| vec![times.kill]),
    ];
    for (name, of) in kinds {
        let [quiet, attacked] = [quiet, attacked].map(|times| {
            let mut all: Vec<u128> = times.iter().flat_map(of).map(|time| time.as_millis()).collect();
            all.sort_unstable();
            (all[all.len() / 2], all[all.len() - 1])
        });
        let _ = writeln!(table, "{name:<22} {:>13} {:>6} {:>18} {:>6}", quiet.0, quiet.1, attacked.0, attacked.1);
    }
    table
}

#[test]
fn a_key_that_runs_every_attack_fails_no_request_of_another_key() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &config(SHARES));
    let other = home.cli(["key", "create", "other"]).run().succeeds().out();
    let other = other.trim();
    let lasting =
        json!({ "templateID": "base", "timeout": 3000, "autoPause": true, "autoResume": { "enabled": true } });
    let [theirs, resting] =
        [(); 2].map(|()| server.ask_as(other, "POST", "/v2/sandboxes", Some(&lasting)).expect(201).json());
    let resting = text(&resting, "sandboxID");
    let _ = server.ask_as(other, "POST", &format!("/sandboxes/{resting}/pause"), None).expect(204);
    let arsenal = Arsenal::new(&home, &server);

    // An upgraded connection keeps its place: a sandbox has no more of them than answers that are being sent (A10).
    let opened: Vec<(TcpStream, String)> = (0..20).map(|_| upgraded(&server, &arsenal.busy)).collect();
    let count = |status: &str| opened.iter().filter(|(_, answer)| answer == status).count();
    let statuses = opened.iter().map(|(_, answer)| answer).collect::<Vec<_>>();
    assert_eq!((count("HTTP/1.1 101"), count("HTTP/1.1 429")), (16, 4), "{statuses:?}");
    drop(opened);

    eprintln!("measuring another key without the attacker");
    let quiet: Vec<Times> = (0..1).map(|number| client(&server, other, number, 3)).collect();
    let attacks = arsenal.attacks(&server, text(&theirs, "sandboxID"), resting);
    let attacked = during(&attacks, || {
        let in_force = || are_in_force(&attacks).then_some(());
        assert!(eventually(Duration::from_secs(30), in_force).is_some(), "{attacks:#?}");
        eprintln!("measuring it with the attacker");
        let begun = Instant::now();
        let mut attacked = Vec::new();
        while attacked.is_empty() || begun.elapsed() < Duration::from_secs(20) {
            attacked.push(client(&server, other, 100 + attacked.len(), 3));
        }
        let listed = server.ask_as(other, "GET", "/v2/sandboxes", None).expect(200).json();
        assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
        let info = server.ask_as(other, "GET", &format!("/sandboxes/{resting}"), None).expect(200).json();
        assert_eq!(info["state"], "paused", "an attack woke it");
        assert_eq!(Envd::of(&server, &theirs).run("echo here").stdout, "here\n");
        attacked
    });
    eprintln!("{}", report(&quiet, &attacked));
    server.stop();
    eprintln!("without shares");

    // With nothing but the shares taken away, the same attacks keep the other key out.
    let mut server = Server::start(&home, &config(NO_SHARES));
    server.key = Some(arsenal.key.clone());
    let attacks: Vec<Attack> = arsenal
        .attacks(&server, text(&theirs, "sandboxID"), resting)
        .into_iter()
        .filter(|attack| [BODIES, UNANSWERED].contains(&attack.name))
        .collect();
    during(&attacks, || {
        let wrong = json!({ "templateID": "no-such-template" });
        let refused = || (server.ask_as(other, "POST", "/v2/sandboxes", Some(&wrong)).status == 429).then_some(());
        assert!(eventually(Duration::from_secs(30), refused).is_some(), "requests that a key has are counted for all");
        let headers =
            [("e2b-sandbox-id", text(&theirs, "sandboxID")), ("x-access-token", text(&theirs, "envdAccessToken"))];
        let url = format!("{}/process.Process/List", server.sandboxes);
        let list = || request("POST", &url, &headers, Some(("application/json", b"{}".to_vec())));
        assert!(eventually(Duration::from_secs(30), || (list().status == 429).then_some(())).is_some());
    });

    for key in [arsenal.key.as_str(), other] {
        let listed = server.ask_as(key, "GET", "/v2/sandboxes", None).expect(200).json();
        for one in listed.as_array().expect("a list") {
            let _ = server.ask_as(key, "DELETE", &format!("/sandboxes/{}", text(one, "sandboxID")), None);
        }
        let listed = server.ask_as(key, "GET", "/snapshots", None).expect(200).json();
        for one in listed.as_array().expect("a list") {
            let _ = server.ask_as(key, "DELETE", &format!("/templates/{}", text(one, "snapshotID")), None);
        }
    }
    server.stop();
    home.assert_nothing_left();
}
