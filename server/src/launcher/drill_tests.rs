//! A front that was taken over: it sends anything, and takes nothing of another key.

use super::{Launcher, SharedLauncher, serve::Channel};
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
        request::{
            Create, Denied, Envelope, Facts, Knock, ListFilter, LogsQuery, Operation, PageOf, Request, Signer,
            SnapshotFilter, Verdict,
        },
        wire::{self, Frame, Kind},
    },
    config::Config,
    registry::{
        Registry,
        record::{OnTimeout, Record, tests::example},
    },
};
use sandboxvm_images::bundle::{Bundle, BundleSources};
use sandboxvm_manager::{Manager, SandboxId};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
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

fn drill() -> Drill {
    let home = tempfile::tempdir().unwrap();
    let manager = Manager::open(home.path()).unwrap();
    let keys = KeyStore::open(&KeyStore::path_in(home.path())).unwrap();
    let key = || keys.create(WantedKey::default()).unwrap();
    let (victim, attacker) = (key(), key());
    let tokens = Tokens::open(&home.path().join("server/secret")).unwrap();
    let bundle = Bundle::find(&BundleSources::default());
    let registry = Registry::open(&Config::default(), manager, bundle).unwrap();
    for (id, owner) in [(VICTIM, &victim), (OWN, &attacker)] {
        registry.add_for_test(Record { owner: KeyId(owner.id.clone()), ..example(id) });
    }
    let launcher =
        Launcher { config: Config::default(), credentials: Credentials { keys, tokens }, registry, tls: None };
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
        }),
        Operation::Connect { id: id(), timeout: 1, memory: None },
        Operation::Connect { id: id(), timeout, memory: Some(false) },
        Operation::Resume { id: id(), timeout: 1, memory: None },
        Operation::Pause { id: id(), memory: Some(false), healthy: false },
        Operation::SetTimeout { id: id(), timeout: 0 },
        Operation::SetTimeout { id: id(), timeout },
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
        path_is_open: false,
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
