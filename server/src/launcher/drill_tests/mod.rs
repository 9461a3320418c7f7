//! A front that was taken over: it sends anything, and takes nothing of another key.

mod builds;
mod channel;
mod doors;
mod operations;

use super::{
    Launcher, Places, SharedLauncher, content_places,
    doors::send,
    serve::{Answer, Channel},
};
use crate::{
    access::{
        Credentials,
        keys::{KeyId, KeyStore, NewKey, WantedKey},
        rate::RateLimits,
        signature::{Claim, Operation as FileOperation},
        tokens::{Scope, Tokens},
    },
    channel::{
        client::Launcher as Client,
        failure::{Failure, Why},
        opening::{self, Opening},
        request::{
            BuildQuery, BuildSpec, Create, Denied, Envelope, Facts, Knock, ListFilter, LogsQuery, Operation, PageOf,
            Request, Signer, SnapshotFilter, UploadClaim, Verdict,
        },
        wire::{self, Frame, Kind},
    },
    config::Config,
    registry::{
        Registry,
        network::{egress::Egress, ingress::Ingress},
        record::{OnTimeout, Record, tests::example},
    },
    volumes::WantedMount,
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
    let launcher = Launcher {
        config,
        credentials: Credentials { keys, tokens },
        registry,
        tls: None,
        places,
        content_places: content_places(),
        content_pace: RateLimits::default(),
    };
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
            volume_mounts: vec![WantedMount { name: name(), path: "/data".into() }],
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
        Operation::ShowVolume { id: id() },
        Operation::RemoveVolume { id: id() },
        Operation::Logs { id: id(), query: LogsQuery { limit: Some(usize::MAX), ..LogsQuery::default() } },
    ]
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
