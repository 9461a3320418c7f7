//! A front that was taken over: it sends anything, and takes nothing of another key.

use super::{
    Launcher, Places, SharedLauncher,
    doors::send,
    serve::{Answer, Channel},
};
use crate::{
    access::{
        Credentials,
        keys::{KeyId, KeyStore, NewKey, WantedKey},
        signature::{Claim, Operation as FileOperation},
        tokens::{Scope, Tokens},
    },
    channel::{
        client::Launcher as Client,
        failure::{Failure, Why},
        opening::Opening,
        request::{
            BuildQuery, BuildSpec, Create, Denied, Envelope, Facts, Knock, ListFilter, LogsQuery, Operation, PageOf,
            Request, Signer, SnapshotFilter, UploadClaim, Verdict,
        },
        wire::{self, Frame, Kind},
    },
    config::Config,
    registry::{
        Registry,
        egress::Egress,
        record::{OnTimeout, Record, tests::example},
    },
};
use sandboxvm_images::bundle::{Bundle, BundleSources};
use sandboxvm_manager::{CText, FilePath, GuestScope, Manager, SandboxId, SupervisorProgram};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

const VICTIM: &str = "victimvictim";
const OWN: &str = "attackerattacker";
const SOON: Duration = Duration::from_secs(20);

struct Drill {
    home: tempfile::TempDir,
    launcher: SharedLauncher,
    victim: NewKey,
    attacker: NewKey,
}

/// A socket to a launcher of one home, and what serves it.
struct Line {
    socket: UnixStream,
    served: AbortOnDropHandle<String>,
}

/// No sandbox of a drill has a network.
fn no_supervisor() -> SupervisorProgram {
    SupervisorProgram { program: "/nonexistent".into(), arguments: Vec::new() }
}

fn drill() -> Drill {
    let home = tempfile::tempdir().unwrap();
    let manager = Manager::open(home.path()).unwrap();
    let keys = KeyStore::open(&KeyStore::path_in(home.path())).unwrap();
    let key = || keys.create(WantedKey::default()).unwrap();
    let (victim, attacker) = (key(), key());
    let tokens = Tokens::open(&home.path().join("server/secret")).unwrap();
    let bundle = Bundle::find(&BundleSources::default());
    let registry = Registry::open(&Config::default(), manager, bundle, no_supervisor()).unwrap();
    for (id, owner) in [(VICTIM, &victim), (OWN, &attacker)] {
        registry.add_for_test(Record { owner: KeyId(owner.id.clone()), ..example(id) });
    }
    let config = Config::default();
    let places = Places::of(&config);
    let launcher = Launcher { config, credentials: Credentials { keys, tokens }, registry, tls: None, places };
    Drill { home, launcher: Arc::new(launcher), victim, attacker }
}

impl Drill {
    fn line(&self) -> Line {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::new(Arc::clone(&self.launcher), theirs, Vec::new(), None);
        let served = tokio::spawn(async move { channel.serve().await.to_string() });
        Line { socket, served: AbortOnDropHandle::new(served) }
    }

    fn front(&self) -> (Client, AbortOnDropHandle<String>) {
        let Line { socket, served } = self.line();
        (Client::on(socket, CancellationToken::new(), CancellationToken::new()), served)
    }

    fn victims_record(&self) -> Record {
        let id = SandboxId::try_from(VICTIM.to_owned()).unwrap();
        self.launcher.registry.entry(&id).expect("the victim's sandbox is there").record()
    }

    /// Every file of the home, and its length.
    fn files(&self) -> BTreeSet<(String, u64)> {
        fn below(directory: &Path, found: &mut BTreeSet<(String, u64)>) {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                let metadata = entry.metadata().unwrap();
                found.insert((entry.path().display().to_string(), metadata.len()));
                if metadata.is_dir() {
                    below(&entry.path(), found);
                }
            }
        }
        let mut found = BTreeSet::new();
        below(self.home.path(), &mut found);
        found
    }
}

/// Bytes that are different for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn build(template: String) -> BuildSpec {
    BuildSpec {
        from_image: None,
        from_template: Some(template),
        login: None,
        force: false,
        steps: Vec::new(),
        start_cmd: None,
        ready_cmd: None,
    }
}

fn operations(id: &str, name: &str) -> Vec<Operation> {
    let (id, name) = (|| id.to_owned(), || name.to_owned());
    let timeout = u64::MAX;
    vec![
        Operation::Create(Create {
            template: name(),
            timeout: 1,
            on_timeout: OnTimeout::Kill,
            auto_resume: true,
            metadata: BTreeMap::from([(name(), name())]),
            env: vec![name()],
            secure: false,
            public_traffic: true,
            mask_request_host: None,
            https_ports: vec![],
            allow_internet_access: None,
            egress: Egress::default(),
        }),
        Operation::Connect { id: id(), timeout: 1, memory: None },
        Operation::Connect { id: id(), timeout, memory: Some(false) },
        Operation::Resume { id: id(), timeout: 1, memory: None },
        Operation::Pause { id: id(), memory: Some(false), healthy: false },
        Operation::SetTimeout { id: id(), timeout: 0 },
        Operation::SetTimeout { id: id(), timeout },
        Operation::SetNetwork { id: id(), egress: Egress::default(), allow_internet_access: Some(true) },
        Operation::Extend { id: id(), timeout: 1 },
        Operation::Fork { id: id(), count: 1, timeout: 1 },
        Operation::Fork { id: id(), count: u32::MAX, timeout },
        Operation::Kill { id: id() },
        Operation::RevokeTokens { id: id() },
        Operation::Find { id: id() },
        Operation::Show { id: id() },
        Operation::Snapshot { id: id(), name: Some(name()), memory: None },
        Operation::RemoveSnapshot { id: id() },
        Operation::RemoveSnapshot { id: name() },
        Operation::Alias { alias: name() },
        Operation::UploadPath { template: id(), hash: "a".repeat(64) },
        Operation::StartBuild { template: id(), build: name(), spec: Box::new(build(name())) },
        Operation::BuildStatus { template: name(), build: id(), query: BuildQuery::default() },
        Operation::ShowTemplate { id: id() },
        Operation::TemplateTags { id: name() },
        Operation::AssignTags { target: name(), tags: vec![name()] },
        Operation::RemoveTags { name: id(), tags: vec![name()] },
        Operation::Samples { id: id(), start: Some(timeout), end: Some(0) },
        Operation::Logs { id: id(), query: LogsQuery { limit: Some(usize::MAX), ..LogsQuery::default() } },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_bytes_end_their_channel_and_nothing_else() {
    let drill = drill();
    let (honest, _served) = drill.front();
    let before = (drill.files(), drill.victims_record());
    for seed in 0..300 {
        let line = drill.line();
        let mut bytes = noise(seed, usize::try_from(seed % 64).unwrap() * 17);
        // Some of them with a header that is valid, before a head that is not.
        if seed % 3 == 0 {
            let head = noise(seed + 1, 200);
            let mut header = [200_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
            header.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            header.extend(head);
            bytes.splice(0..0, header);
        }
        line.socket.writable().await.unwrap();
        let _ = line.socket.try_write(&bytes);
        drop(line.socket);
        let ended = timeout(SOON, line.served).await.expect("a channel ends").expect("it does not panic");
        assert!(ended.contains("broke the protocol") || ended.contains("closed"), "{ended}");
        let found: Option<Value> =
            honest.ask(Request::Authenticate { secret: drill.victim.secret.clone() }).await.unwrap();
        assert!(found.is_some());
    }
    assert!(before == (drill.files(), drill.victims_record()), "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_reach_nothing_of_another_key_and_no_path() {
    let drill = drill();
    let (front, _served) = drill.front();
    let before = (drill.files(), drill.victims_record());
    let long = "x".repeat(100_000);
    let names = ["../../etc/passwd", "/etc/passwd", "base\0", "..", "", "base/../..", "e2b-\n", &long];
    let ids = [VICTIM, "../victimvictim", "victimvictim\0", "/", "", "VICTIMVICTIM", "victim", &long];
    for name in names {
        for id in ids {
            for operation in operations(id, name) {
                let text = format!("{operation:?}");
                let secret = drill.attacker.secret.clone();
                let done: Result<Value, Failure> =
                    timeout(SOON, front.ask(Request::Operate { secret, operation })).await.expect("it is answered");
                let failure = done.expect_err(&text);
                assert!(matches!(failure.why, Why::NotFound | Why::Invalid), "{text:.200}: {failure:?}");
            }
        }
    }
    // Its own are listed, and no others.
    for operation in [
        Operation::List(ListFilter { page: Some(PageOf::default()), ..ListFilter::default() }),
        Operation::Snapshots(SnapshotFilter::default()),
        Operation::Templates,
        Operation::LastSamples { ids: vec![VICTIM.into()] },
    ] {
        let secret = drill.attacker.secret.clone();
        let listed: Value = front.ask(Request::Operate { secret, operation }).await.unwrap();
        assert!(!listed.to_string().contains(VICTIM), "{listed}");
    }
    assert!(before == (drill.files(), drill.victims_record()), "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_front_does_not_present_cannot_be_used() {
    let drill = drill();
    let (front, _served) = drill.front();
    let operate = async |secret: &str| -> Result<Value, Failure> {
        let operation = Operation::RevokeTokens { id: VICTIM.into() };
        front.ask(Request::Operate { secret: secret.to_owned(), operation }).await
    };
    let hash = fs::read_to_string(KeyStore::path_in(drill.home.path())).unwrap();
    let hash = serde_json::from_str::<Value>(&hash).unwrap()[0]["sha256"].as_str().unwrap().to_owned();
    for secret in ["", &drill.victim.id, &hash, &drill.victim.secret[..40], &"x".repeat(1 << 20)] {
        assert_eq!(operate(secret).await.unwrap_err().why, Why::Unauthorized);
    }
    // The key itself is enough, until it is removed.
    operate(&drill.victim.secret).await.unwrap_err();
    drill.launcher.credentials.keys.remove(&drill.victim.id).unwrap();
    assert_eq!(operate(&drill.victim.secret).await.unwrap_err().why, Why::Unauthorized);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_key_changes_nothing_whatever_the_front_says() {
    let drill = drill();
    let (front, _served) = drill.front();
    let looks_at = WantedKey { looks_at: Some(drill.victim.id.clone()), ..WantedKey::default() };
    let looker = drill.launcher.credentials.keys.create(looks_at).unwrap();
    for operation in operations(VICTIM, "base") {
        let looks_only = operation.looks_only();
        let text = format!("{operation:?}");
        let secret = looker.secret.clone();
        let done: Result<Value, Failure> = front.ask(Request::Operate { secret, operation }).await;
        let is_forbidden = done.err().is_some_and(|failure| failure.why == Why::Forbidden);
        assert_eq!(is_forbidden, !looks_only, "{text}");
    }
}

fn knock(id: &str, port: u16) -> Knock {
    Knock {
        id: SandboxId::try_from(id.to_owned()).unwrap(),
        port,
        token: None,
        traffic_token: None,
        is_file: false,
        claim: None,
        opening: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_opens_only_to_its_own_token_or_signature() {
    let drill = drill();
    let (front, _served) = drill.front();
    let id = |id: &str| SandboxId::try_from(id.to_owned()).unwrap();
    let token = |of: &str, scope| drill.launcher.credentials.tokens.of(scope, &id(of), 0);
    let claim = |operation, given: &str| Claim {
        path: "/etc/passwd".into(),
        operation,
        user: "root".into(),
        until: None,
        given: given.into(),
    };
    let signed = |operation, with: &str| {
        let unsigned = claim(operation, "");
        Claim { given: unsigned.signature(with), ..unsigned }
    };
    let other = token(OWN, Scope::Envd);
    for (wrong, expected) in [
        (knock(VICTIM, 49983), Denied::NoToken),
        (Knock { token: Some(String::new()), ..knock(VICTIM, 49983) }, Denied::WrongToken),
        (Knock { token: Some(other.clone()), ..knock(VICTIM, 49983) }, Denied::WrongToken),
        (Knock { token: Some(token(VICTIM, Scope::Traffic)), ..knock(VICTIM, 49983) }, Denied::WrongToken),
        (Knock { is_file: true, ..knock(VICTIM, 49983) }, Denied::NoClaim),
        (
            Knock { is_file: true, claim: Some(signed(FileOperation::Read, &other)), ..knock(VICTIM, 49983) },
            Denied::WrongSignature,
        ),
        // A signature is for files, whatever the front says the request is about.
        (Knock { claim: Some(signed(FileOperation::Read, &other)), ..knock(VICTIM, 49983) }, Denied::NoToken),
        (knock(VICTIM, 49999), Denied::NoToken),
    ] {
        let verdict: Verdict = front.ask(Request::Knock(wrong.clone())).await.unwrap();
        assert!(matches!(verdict, Verdict::Denied(denied) if denied == expected), "{wrong:?}: {verdict:?}");
        let opened = front.ask_with(Request::Reach(wrong), Vec::new()).await;
        assert_eq!(opened.unwrap_err().why, Why::NotFound);
    }
    let own = Knock { token: Some(token(VICTIM, Scope::Envd)), ..knock(VICTIM, 49983) };
    let verdict: Verdict = front.ask(Request::Knock(own)).await.unwrap();
    assert!(matches!(verdict, Verdict::Allowed(Facts { .. })), "{verdict:?}");
    let signer: Signer =
        front.ask(Request::FindSigner(signed(FileOperation::Read, &token(VICTIM, Scope::Envd)))).await.unwrap();
    assert!(matches!(signer, Signer::Found(found) if found == id(VICTIM)));
    let signer: Signer = front.ask(Request::FindSigner(claim(FileOperation::Write, "v1_"))).await.unwrap();
    assert!(matches!(signer, Signer::Denied(Denied::WrongSignature)));
    for handle in [0, 1, 2, u64::MAX] {
        for request in [Request::Call { handle }, Request::Sample { handle }, Request::Environment { handle }] {
            front.ask_with(request, noise(handle, 100)).await.unwrap_err();
        }
        front.tell(Request::Tell { handle }, noise(handle, 100));
        front.tell(Request::Begun { handle }, Vec::new());
        front.tell(Request::Release { handle }, Vec::new());
        front.tell(Request::Cancel { request: handle }, Vec::new());
    }
    front.ask_with(Request::Setup, Vec::new()).await.unwrap_err();
    let _: Value = front.ask(Request::Measure).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_code_interpreter_is_asked_without_a_token_is_sent_by_the_launcher_alone() {
    let drill = drill();
    let token = drill.launcher.credentials.tokens.of(Scope::Envd, &knock(VICTIM, 1).id, 0);
    let asking = |method: &str, path: &str| Knock { opening: Opening::of(method, path), ..knock(VICTIM, 49999) };
    let (_, grant) = drill.launcher.admitted(&asking("GET", "/contexts")).unwrap().unwrap();
    assert!(grant.sends.is_some());
    // With the token, the front has the connection itself.
    let with_token = Knock { token: Some(token), ..asking("GET", "/contexts") };
    assert!(drill.launcher.admitted(&with_token).unwrap().unwrap().1.sends.is_none());
    // Whatever the front says that the request is.
    let forged = |method: &str, path: &str| {
        let opening = serde_json::from_value(serde_json::json!({ "method": method, "path": path })).unwrap();
        Knock { opening: Some(opening), ..knock(VICTIM, 49999) }
    };
    for (method, path) in [
        ("POST", "/execute"),
        ("GET", "/contexts/../execute"),
        ("GET", "/health HTTP/1.1\r\n\r\nPOST /execute"),
        ("POST /execute HTTP/1.1\r\n\r\nGET", "/health"),
    ] {
        let denied = drill.launcher.admitted(&forged(method, path)).unwrap_err();
        assert_eq!(denied, Denied::NoToken, "{method} {path}");
    }
    // What the front writes to its connection reaches no guest.
    let (guest, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let request = Opening::of("GET", "/contexts").unwrap().request("localhost", b"");
    let (theirs, _passing) = send(&request, guest.into()).await.unwrap();
    let stream = |of: std::os::unix::net::UnixStream| {
        of.set_nonblocking(true).unwrap();
        UnixStream::from_std(of).unwrap()
    };
    let (mut front, mut far) = (stream(theirs.into()), stream(far));
    front.write_all(b"POST /execute HTTP/1.1\r\n\r\n").await.unwrap();
    let mut received = vec![0; request.len()];
    far.read_exact(&mut received).await.unwrap();
    assert!(received == request);
    let more = timeout(Duration::from_millis(200), far.read(&mut received)).await;
    assert!(more.is_err(), "{more:?}");
    far.write_all(b"[]").await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    front.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"[]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_is_worth_no_more_than_what_opened_it() {
    let drill = drill();
    let id = knock(VICTIM, 1).id;
    let token = drill.launcher.credentials.tokens.of(Scope::Envd, &id, 0);
    let signed = |until| {
        let unsigned = Claim {
            path: "/a".into(),
            operation: FileOperation::Read,
            user: String::new(),
            until,
            given: String::new(),
        };
        let claim = Claim { given: unsigned.signature(&token), ..unsigned };
        Knock { is_file: true, claim: Some(claim), ..knock(VICTIM, 49983) }
    };
    let grant = |knock: &Knock| drill.launcher.admitted(knock).unwrap().unwrap().1;
    let entry = || drill.launcher.registry.entry(&id).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let whole = grant(&Knock { token: Some(token.clone()), ..knock(VICTIM, 49983) });
    let (file, short, port) = (grant(&signed(None)), grant(&signed(Some(now + 1))), grant(&knock(VICTIM, 80)));
    let user = CText::try_from("user").unwrap();
    assert_eq!(file.scope, GuestScope::ReadFile { path: FilePath::try_from("/a").unwrap(), user });
    // Environment and samples are for the token alone.
    whole.check_whole(&entry()).unwrap();
    for narrow in [&file, &short, &port] {
        narrow.check(&entry()).unwrap();
        assert_eq!(narrow.check_whole(&entry()).unwrap_err().why, Why::Forbidden);
    }
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(short.check(&entry()).unwrap_err().why, Why::Unauthorized);
    let record = Record { token_generation: 1, ..drill.victims_record() };
    drill.launcher.registry.add_for_test(record);
    for revoked in [&whole, &file] {
        assert_eq!(revoked.check(&entry()).unwrap_err().why, Why::Unauthorized);
    }
    port.check(&entry()).unwrap();
    let long = Claim { path: "x".repeat(5000), ..signed(None).claim.unwrap() };
    assert!(!long.is_short());
}

#[test]
fn an_answer_that_is_too_long_for_a_front_is_a_failure_of_its_request() {
    let answer = |head, tail| Answer { head: vec![b'x'; head], tail: vec![0; tail], descriptors: Vec::new() };
    answer(64 << 20, 0).frame(1).unwrap();
    for (head, tail) in [((64 << 20) + 1, 0), (0, (64 << 20) + 1)] {
        let failure = answer(head, tail).frame(1).unwrap_err();
        assert!(failure.message.contains("pages"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_that_wait_for_a_turn_end_with_their_front() {
    let drill = drill();
    // Another front has all turns.
    let long = &drill.launcher.places.long_operations;
    let turns = long.acquire_many(12).await.unwrap();
    let line = drill.line();
    let secret = drill.attacker.secret.clone();
    let operation = Operation::Templates;
    let request = Request::Operate { secret, operation };
    let head = serde_json::to_vec(&Envelope { trace: None, request }).unwrap();
    wire::write(&line.socket, &Frame::new(1, Kind::Request, head)).await.unwrap();
    // Another channel has the same turns.
    let (honest, _served) = drill.front();
    let secret = drill.victim.secret.clone();
    let waiting = honest.ask::<Value>(Request::Operate { secret, operation: Operation::Templates });
    let mut waiting = std::pin::pin!(waiting);
    timeout(Duration::from_millis(200), waiting.as_mut()).await.unwrap_err();
    drop(line.socket);
    timeout(SOON, line.served).await.unwrap().unwrap();
    drop(turns);
    timeout(SOON, waiting).await.expect("its turn comes").unwrap();
    let turns = timeout(SOON, long.acquire_many(12)).await.expect("no turn is kept").unwrap();
    drop(turns);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_of_many_variables_is_too_long() {
    let drill = drill();
    let (front, _served) = drill.front();
    let Operation::Create(create) = operations(OWN, "base").remove(0) else { panic!() };
    let operation = Operation::Create(Create { env: vec![String::new(); 100_000], ..create });
    let secret = drill.attacker.secret.clone();
    let failure = front.ask::<Value>(Request::Operate { secret, operation }).await.unwrap_err();
    assert!(failure.why == Why::Invalid && failure.message.contains("environment"), "{failure}");
}

fn resident_mib() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / (1 << 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_that_reads_no_answers_takes_bounded_memory_and_delays_no_other() {
    let drill = drill();
    let (honest, _served) = drill.front();
    let line = drill.line();
    let before = resident_mib();
    let secret = drill.attacker.secret.clone();
    let large = Operation::Alias { alias: "x".repeat(1 << 20) };
    let requests = [
        Request::Authenticate { secret: secret.clone() },
        Request::Operate { secret: secret.clone(), operation: large },
        Request::Known { ids: vec![SandboxId::try_from(VICTIM.to_owned()).unwrap(); 20_000] },
        Request::Operate { secret, operation: Operation::Templates },
    ];
    let heads: Vec<Vec<u8>> =
        requests.into_iter().map(|request| serde_json::to_vec(&Envelope { trace: None, request }).unwrap()).collect();
    let socket = Arc::new(line.socket);
    let flood = AbortOnDropHandle::new(tokio::spawn({
        let socket = Arc::clone(&socket);
        async move {
            let mut sent = 0_u64;
            loop {
                let head = heads[usize::try_from(sent).unwrap() % heads.len()].clone();
                sent += 1;
                if wire::write(&socket, &Frame::new(sent, Kind::Request, head)).await.is_err() {
                    return;
                }
            }
        }
    }));
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        let found: Option<Value> =
            timeout(SOON, honest.ask(Request::Authenticate { secret: drill.victim.secret.clone() }))
                .await
                .expect("another front is answered")
                .unwrap();
        assert!(found.is_some());
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < 512, "{grown} MiB");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert!(!flood.is_finished(), "it waits: its answers are not read");
}

fn requested(made: &Value) -> (String, String) {
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("templateID"), text("buildID"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn templates_of_another_key_are_as_if_they_were_not_there() {
    let drill = drill();
    let (front, _served) = drill.front();
    let operate = async |secret: &str, operation| -> Result<Value, Failure> {
        front.ask(Request::Operate { secret: secret.to_owned(), operation }).await
    };
    let ask = |name: &str| Operation::RequestBuild { name: name.into(), tags: vec![], cpus: None, memory: None };
    let made = operate(&drill.victim.secret, ask("mine:v1")).await.unwrap();
    let (template, id) = requested(&made);
    assert_eq!(made["tags"], serde_json::json!(["v1"]));
    // The same name is the same template for its key, and another one for another key.
    assert_eq!(requested(&operate(&drill.victim.secret, ask("ns/mine")).await.unwrap()).0, template);
    assert_ne!(requested(&operate(&drill.attacker.secret, ask("mine")).await.unwrap()).0, template);
    for name in [template.as_str(), &format!("{template}:{id}"), &format!("{template}:v1")] {
        for operation in operations(name, &id) {
            let text = format!("{operation:?}");
            let failure = operate(&drill.attacker.secret, operation).await.expect_err(&text);
            assert!(matches!(failure.why, Why::NotFound | Why::Invalid), "{text:.200}: {failure:?}");
        }
    }
    let (query, build) = (BuildQuery::default(), id.clone());
    let status = operate(&drill.victim.secret, Operation::BuildStatus { template: template.clone(), build, query });
    assert_eq!(status.await.unwrap()["status"], "waiting");
    for wrong in ["base", "", "a b", "a/", &"x".repeat(129), "mine:a b"] {
        assert_eq!(operate(&drill.victim.secret, ask(wrong)).await.unwrap_err().why, Why::Invalid, "{wrong}");
    }
    let sizes = Operation::RequestBuild { name: "big".into(), tags: vec![], cpus: Some(64), memory: None };
    assert!(operate(&drill.victim.secret, sizes).await.unwrap_err().message.contains("cpuCount"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_use_no_image_unless_the_operator_permits_its_registry() {
    let drill = drill();
    let (front, _served) = drill.front();
    let operate = async |operation| -> Result<Value, Failure> {
        front.ask(Request::Operate { secret: drill.attacker.secret.clone(), operation }).await
    };
    let ask = Operation::RequestBuild { name: "mine".into(), tags: vec![], cpus: None, memory: None };
    let (template, id) = requested(&operate(ask).await.unwrap());
    let start = async |spec| {
        let (template, build) = (template.clone(), id.clone());
        operate(Operation::StartBuild { template, build, spec: Box::new(spec) }).await.unwrap_err()
    };
    for image in ["python:3.11", "169.254.169.254/x", "localhost:5000/x", "10.0.0.1/x"] {
        let spec = BuildSpec { from_template: None, from_image: Some(image.into()), ..build("".into()) };
        let failure = start(spec).await;
        assert_eq!(failure.why, Why::Forbidden, "{image}: {failure}");
        assert!(failure.message.contains("permits no registry"), "{failure}");
    }
    let neither = BuildSpec { from_template: None, ..build(String::new()) };
    assert_eq!(start(neither).await.why, Why::Invalid);
    assert_eq!(start(build("unknown".into())).await.why, Why::NotFound);
    let steps = serde_json::from_str(r#"[{"type":"COPY","args":["a","b"],"filesHash":"../../etc/passwd"}]"#).unwrap();
    let failure = start(BuildSpec { steps, ..build("base".into()) }).await;
    assert!(failure.why == Why::Invalid && failure.message.starts_with("step 1: "), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_need_a_signature_for_this_file_and_time() {
    let drill = drill();
    let (front, _served) = drill.front();
    let secret = || drill.attacker.secret.clone();
    let operate =
        async |operation| -> Value { front.ask(Request::Operate { secret: secret(), operation }).await.unwrap() };
    let ask = Operation::RequestBuild { name: "mine".into(), tags: vec![], cpus: None, memory: None };
    let (template, _) = requested(&operate(ask).await);
    let hash = "a".repeat(64);
    let path = async || {
        let operation = Operation::UploadPath { template: template.clone(), hash: hash.clone() };
        let answer = operate(operation).await;
        (answer["present"].as_bool().unwrap(), answer["path"].as_str().unwrap().to_owned())
    };
    let (present, url) = path().await;
    let (_, query) = url.split_once("?until=").unwrap();
    let (until, signature) = query.split_once("&signature=").unwrap();
    let claim = UploadClaim {
        template: template.clone(),
        hash: hash.clone(),
        until: until.parse().unwrap(),
        signature: signature.into(),
        length: 5,
    };
    assert!(!present && url.starts_with(&format!("/uploads/{template}/{hash}?")));
    let mut wrong = vec![claim.clone(); 6];
    wrong[0].until += 1;
    wrong[1].hash = "b".repeat(64);
    wrong[2].signature = "0".repeat(48);
    wrong[3].template = "tpl-0000000000000000".into();
    wrong[4].signature = String::new();
    // A signature that is valid, for a time that is over.
    wrong[5].until = 1;
    wrong[5].signature = drill.launcher.credentials.tokens.sign(&format!("upload:{template}:{hash}:1"));
    for claim in wrong {
        let text = format!("{claim:?}");
        let failure = front.ask_with(Request::Upload(claim), vec![]).await.expect_err(&text);
        assert_eq!(failure.why, Why::Forbidden, "{text}");
    }
    let too_long = UploadClaim { length: 2 << 30, ..claim.clone() };
    assert_eq!(front.ask_with(Request::Upload(too_long), vec![]).await.unwrap_err().why, Why::Quota);
    let send = async |bytes: &[u8]| {
        let mut reply = front.ask_with(Request::Upload(claim.clone()), vec![]).await.unwrap();
        let owner: String = serde_json::from_slice(&reply.head).unwrap();
        assert_eq!(owner, drill.attacker.id);
        let socket = std::os::unix::net::UnixStream::from(reply.descriptors.pop().unwrap());
        let mut socket = UnixStream::from_std(socket).unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(SOON, socket.read_to_end(&mut answer)).await.unwrap();
        answer
    };
    assert_eq!(send(b"four").await, b"");
    assert!(!path().await.0);
    assert_eq!(send(b"right").await, b"1");
    assert!(path().await.0);
}
