//! Pins the format of the log: a line of every kind, in a valid log. `events --json` prints these
//! lines as they are. Logs outlive the program that wrote them, so every later version has to read
//! these lines.

use super::{
    chain::{self, GENESIS},
    event::{Event, FileAct, NetworkDecision, Origin},
    line::{Actor, Line},
};
use crate::limits::lifetime::{AtEnd, WhenIdle};
use sandboxvm_protocol::{
    egress::{FlowEnd, Reach, Transport},
    ids::{SandboxId, SandboxName},
    machine::{MemorySize, VcpuCount},
};
use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

fn id(text: &str) -> SandboxId {
    SandboxId::try_from(text.to_owned()).unwrap()
}

fn name(text: &str) -> SandboxName {
    SandboxName::try_from(text.to_owned()).unwrap()
}

/// Returns every kind of event and every kind of member, with and without optional members.
fn examples() -> Vec<Event> {
    let memory_bytes = MemorySize::try_from(256 << 20).unwrap();
    let created = |from, name: Option<SandboxName>, env: Vec<String>| Event::Created {
        name,
        vcpus: VcpuCount::ONE,
        memory_bytes,
        disk_bytes: 2 << 30,
        from,
        env,
    };
    let files = |act, to: Option<&str>, user: Option<&str>| Event::Files {
        act,
        path: "/tmp/x".into(),
        to: to.map(str::to_owned),
        user: user.map(str::to_owned),
    };
    let mut events = vec![
        created(Origin::Ready, Some(name("demo")), vec!["LANG".into()]),
        created(Origin::Boot, None, vec![]),
        created(Origin::Snapshot(name("kept")), None, vec![]),
        created(Origin::Fork(id("bbbbbbbb")), None, vec![]),
        Event::Exec {
            argv: vec!["sh".into(), "-c".into(), "***".into()],
            env: vec!["TOKEN".into()],
            cwd: Some("/tmp".into()),
            user: Some("nobody".into()),
            terminal: true,
        },
        Event::Exec { argv: vec!["true".into()], env: vec![], cwd: None, user: None, terminal: false },
        Event::Started { exec: 5, pid: 301 },
        Event::NotStarted { exec: 6, reason: "true: not found".into() },
        Event::Ended { pid: 301, exit_code: 137, signal: Some(9), timed_out: false },
        Event::Ended { pid: 302, exit_code: 124, signal: None, timed_out: true },
        Event::Attached { pid: 301, stdin: true },
        Event::Signalled { pid: 301, signal: 15 },
    ];
    let acts = [
        FileAct::Read,
        FileAct::Write,
        FileAct::MakeDirectory,
        FileAct::Remove,
        FileAct::SetMode,
        FileAct::SetOwner,
        FileAct::Watch,
        FileAct::Archive,
        FileAct::Extract,
    ];
    events.push(files(FileAct::Move, Some("/tmp/y"), Some("nobody")));
    events.extend(acts.map(|act| files(act, None, None)));
    let host = || "127.0.0.1:8080".to_owned();
    events.extend([
        Event::SnapshotCreated { snapshot: name("kept") },
        Event::Forked { copies: vec![id("cccccccc")] },
        Event::Reset { to: Some(name("kept")) },
        Event::Reset { to: None },
        Event::Paused,
        Event::Resumed,
        Event::Stopped,
        Event::MachineEnded { reason: "the guest kernel panicked".into() },
        Event::Removed,
        Event::PortPublished { guest_port: 80, host: host() },
        Event::PortTakenBack { guest_port: 80, host: host() },
        Event::IdlePaused,
        Event::Torn { bytes: 17 },
        Event::NotAdmitted { memory_bytes, disk_bytes: 2 << 30, reason: "256 MiB of memory: ...".into() },
    ]);
    events.extend([AtEnd::Stop, AtEnd::Remove].map(|then| Event::TimeUp { then }));
    events.extend([WhenIdle::Stop, WhenIdle::Remove].map(|then| Event::IdleEnded { then }));
    events.push(Event::LimitsHit { processes_refused: 3, killed_for_memory: 1, disk_is_full: false });
    events.push(Event::NotForked { copies: 3, reason: "3 more: ...".into() });
    events.push(Event::StoppedByForce { because: "it was paused".into() });
    events.extend(of_the_network());
    events.push(files(FileAct::PackChanges, None, None));
    events.push(files(FileAct::MountWorkspace, None, None));
    events.push(files(FileAct::PackWorkspace, None, None));
    events.push(files(FileAct::Mount, None, None));
    events
}

fn of_the_network() -> Vec<Event> {
    let allowed = |rule: Option<&str>| NetworkDecision { allowed: true, rule: rule.map(str::to_owned), reason: None };
    let refused = |rule: Option<&str>, reason: &str| NetworkDecision {
        allowed: false,
        rule: rule.map(str::to_owned),
        reason: Some(reason.into()),
    };
    let reaches = [Reach::Nothing, Reach::Public, Reach::Listed];
    let mut events: Vec<Event> = reaches
        .map(|reach| Event::NetworkSet {
            reach,
            allow: vec!["index.example:443".into()],
            deny: vec!["ads.index.example".into()],
            secrets: vec![],
            proxy: None,
        })
        .into_iter()
        .collect();
    events.push(Event::NetworkFlow {
        transport: Transport::Tcp,
        name: Some("index.example".into()),
        address: [192, 0, 2, 1].into(),
        port: 443,
        decision: allowed(Some("index.example:443")),
        proxied: false,
        bytes_out: 1200,
        bytes_in: 3_400_000,
        millis: 850,
        end: FlowEnd::Closed,
        count: 1,
    });
    let ends = [FlowEnd::Reset, FlowEnd::NotEstablished, FlowEnd::Idle, FlowEnd::Cut];
    events.extend(ends.map(|end| Event::NetworkFlow {
        transport: Transport::Udp,
        name: None,
        address: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
        port: 53,
        decision: refused(None, "no rule allows it"),
        proxied: false,
        bytes_out: 0,
        bytes_in: 0,
        millis: 0,
        end,
        count: 17,
    }));
    events.push(Event::NetworkFlow {
        transport: Transport::Icmp,
        name: None,
        address: [192, 0, 2, 9].into(),
        port: 0,
        decision: allowed(None),
        proxied: false,
        bytes_out: 64,
        bytes_in: 64,
        millis: 3,
        end: FlowEnd::Idle,
        count: 1,
    });
    events.push(Event::NetworkName {
        name: "ads.example".into(),
        question: 28,
        decision: refused(Some("*.example"), "a rule denies it"),
        count: 2,
    });
    events.push(Event::SecretBlocked {
        secret: "API_TOKEN".into(),
        host: "other.example".into(),
        reason: "the secret is not for this host".into(),
    });
    events.push(Event::NetworkOmitted { records: 40_000 });
    events.push(Event::NetworkRestarted { reason: "the egress process was killed by signal 9".into() });
    events.push(Event::NetworkUnlogged);
    events.push(Event::NetworkSet {
        reach: Reach::Public,
        allow: vec![],
        deny: vec![],
        secrets: vec![],
        proxy: Some("socks5://proxy.example:1080".into()),
    });
    events.push(Event::NetworkFlow {
        transport: Transport::Tcp,
        name: Some("index.example".into()),
        address: [192, 0, 2, 1].into(),
        port: 443,
        decision: allowed(Some("index.example:443")),
        proxied: true,
        bytes_out: 1,
        bytes_in: 2,
        millis: 3,
        end: FlowEnd::Closed,
        count: 1,
    });
    events
}

/// A new kind of event does not compile until it has a place here. Add an example above, too.
fn place(event: &Event) -> usize {
    match event {
        Event::Created { .. } => 0,
        Event::Exec { .. } => 1,
        Event::Started { .. } => 2,
        Event::NotStarted { .. } => 3,
        Event::Ended { .. } => 4,
        Event::Attached { .. } => 5,
        Event::Signalled { .. } => 6,
        Event::Files { .. } => 7,
        Event::SnapshotCreated { .. } => 8,
        Event::Forked { .. } => 9,
        Event::Reset { .. } => 10,
        Event::Paused => 11,
        Event::Resumed => 12,
        Event::Stopped => 13,
        Event::MachineEnded { .. } => 14,
        Event::Removed => 15,
        Event::PortPublished { .. } => 16,
        Event::PortTakenBack { .. } => 17,
        Event::IdlePaused => 18,
        Event::Torn { .. } => 19,
        Event::NotAdmitted { .. } => 20,
        Event::TimeUp { .. } => 21,
        Event::IdleEnded { .. } => 22,
        Event::LimitsHit { .. } => 23,
        Event::NotForked { .. } => 24,
        Event::StoppedByForce { .. } => 25,
        Event::NetworkSet { .. } => 26,
        Event::NetworkFlow { .. } => 27,
        Event::NetworkName { .. } => 28,
        Event::SecretBlocked { .. } => 29,
        Event::NetworkOmitted { .. } => 30,
        Event::NetworkRestarted { .. } => 31,
        Event::NetworkUnlogged => 32,
    }
}

#[test]
fn line_format_of_every_event_is_stable() {
    let mut prev = GENESIS.to_owned();
    let mut log = String::new();
    let mut places = std::collections::BTreeSet::new();
    for (seq, event) in (1..).zip(examples()) {
        places.insert(place(&event));
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123 + seq);
        let line = Line { seq, time, sandbox: id("aaaaaaaa"), by: Actor { uid: 0, pid: 4711 }, event, prev };
        let (text, head) = chain::seal(&line).unwrap();
        log.push_str(&String::from_utf8(text).unwrap());
        prev = head.hash;
    }
    assert!(places.into_iter().eq(0..=32), "a kind has no example");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.jsonl");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &log).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = log.lines().zip(golden.lines()).find(|(now, then)| now != then);
    assert!(
        golden == log,
        "lines of audit logs are not as {} has them; kinds may be added at the end, and nothing changed, since logs \
         outlive us. UPDATE_GOLDEN=1 cargo test -p sandboxvm-manager writes it anew. The first that differs: {differs:?}",
        path.display()
    );
    // The golden file must also be readable.
    let verified = chain::verify(golden.as_bytes(), &id("aaaaaaaa"), None).unwrap();
    assert_eq!(verified.head, prev);
}
