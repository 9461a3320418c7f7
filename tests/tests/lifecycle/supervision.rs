//! Times to live and idle rules take effect without any client, and after the kill of any process.

use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    host::processes,
};
use serde_json::Value;
use std::{fs, net::TcpStream, os::unix::net::UnixStream, thread, time::Duration};

const SOON: Duration = Duration::from_secs(240);

/// Returns the PID of the supervisor, if there is one.
fn supervisor(sandbox: &Sandbox<'_>) -> Option<u32> {
    let holding = processes::that_hold(&sandbox.directory());
    holding.into_iter().find(|process| process.command.contains(" supervise ")).map(|process| process.pid)
}

/// Reads the state from the sandbox's files, because a command of the CLI might change it.
fn phase(sandbox: &Sandbox<'_>) -> String {
    let status = fs::read(sandbox.directory().join("status.json")).ok();
    let status: Option<Value> = status.and_then(|status| serde_json::from_slice(&status).ok());
    status.and_then(|status| status["phase"].as_str().map(str::to_owned)).unwrap_or_default()
}

fn deadline(sandbox: &Sandbox<'_>) -> Value {
    let json = fs::read(sandbox.directory().join("supervision.json")).expect("the sandbox is supervised");
    serde_json::from_slice::<Value>(&json).expect("JSON")["ttl"]["deadline"].clone()
}

/// Returns the clock ticks that a process has used, in user and kernel mode.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process exists");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a command's name").1.split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

/// A sandbox that its creator left when it was killed still ends, and has its ports.
#[test]
fn a_sandbox_has_its_services_as_soon_as_it_can_be_seen() {
    let Some(home) = Home::with_kvm() else { return };
    let create = home.cli(["create", "-m", SMALL, "--name", "left", "-p", "8000", "--ttl", "1h"]).spawn();
    let seen = || {
        let mut there = fs::read_dir(home.path().join("sandboxes")).ok()?.flatten();
        there.next()
    };
    let id = eventually(SOON, seen).expect("it appears").file_name().into_string().expect("an ID");
    create.signal(rustix::process::Signal::KILL);
    let _ = create.finish();
    let sandbox = Sandbox::called(&home, &id);
    assert!(deadline(&sandbox).is_object(), "{}", deadline(&sandbox));
    let _ = sandbox.exec(["--", "true"]).run().succeeds();
    assert!(eventually(SOON, || supervisor(&sandbox)).is_some(), "the next command starts no supervisor");
    let published = home.cli(["port", "left"]).run().succeeds().out();
    assert!(published.contains("8000/tcp -> 127.0.0.1:"), "{published}");
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn sandboxes_expire_without_a_client() {
    let Some(home) = Home::with_kvm() else { return };
    let kept = home.create(&["-m", SMALL, "--ttl", "4s"]);
    let removed = home.create(&["-m", SMALL, "--ttl", "4s=rm"]);
    // A paused sandbox expires too.
    let _ = home.cli(["pause", &kept.id]).run().succeeds();
    let stays = home.create(&["-m", SMALL, "--ttl", "1h"]);
    let ended = eventually(SOON, || (!removed.directory().exists() && phase(&kept) == "ended").then_some(()));
    assert!(ended.is_some(), "{} {}", phase(&kept), phase(&removed));
    assert_eq!(phase(&stays), "ready");
    let row = home.row(&kept.id);
    assert_eq!(row["state"], "exited", "{row}");
    let left = home.row(&stays.id)["supervision"]["ttl_left_ms"].as_u64().expect("the sandbox has a time to live");
    assert!((3_000_000..3_600_000).contains(&left), "{left}");
    let ended = eventually(SOON, || supervisor(&kept).is_none().then_some(()));
    assert!(ended.is_some(), "a supervisor outlives its sandbox");
    // A reset of an expired sandbox starts its time to live again.
    let before = deadline(&kept);
    let _ = home.cli(["reset", &kept.id]).run().succeeds();
    assert_ne!(deadline(&kept), before);
    let ended = eventually(SOON, || (phase(&kept) == "ended").then_some(()));
    assert!(ended.is_some(), "{}", phase(&kept));
    let _ = home.cli(["rm", &kept.id]).run().succeeds();
    stays.remove();
    home.assert_nothing_left();
}

#[test]
fn an_idle_sandbox_is_paused_and_the_next_use_resumes_it() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo", "--idle", "1s=pause", "-p", "7000"]);
    let rests = || (phase(&sandbox) == "paused").then_some(());
    assert!(eventually(SOON, rests).is_some(), "never paused");
    let row = home.row(&sandbox.id);
    assert_eq!((&row["state"], &row["supervision"]["idle_paused"]), (&Value::from("paused"), &Value::from(true)));
    let (vmm, before) = (sandbox.vmm_pid(), ticks(sandbox.vmm_pid()));
    thread::sleep(Duration::from_secs(2));
    assert!(ticks(vmm) <= before + 1, "a paused machine spends processor time");

    // A command that runs longer than the idle rule's time is a use. A background process is not.
    assert_eq!(sandbox.sh("sleep 4; echo done").succeeds().out(), "done\n");
    let server = r#"use Socket;
        socket S, PF_INET, SOCK_STREAM, 0; bind S, sockaddr_in 7000, INADDR_LOOPBACK or die; listen S, 9;
        syswrite STDOUT, "up"; while (accept my $c, S) { print $c "hello"; close $c }"#;
    let made = sandbox.exec(["-d", "--", "perl", "-e", server]).run().succeeds();
    let up = eventually(SOON, || {
        thread::sleep(Duration::from_secs(1));
        (home.cli(["logs", "demo", made.out().trim()]).run().succeeds().out() == "up").then_some(())
    });
    assert!(up.is_some(), "the server does not start");
    assert!(eventually(SOON, rests).is_some(), "never paused again");
    // A connection to a published port is a use.
    let ports = home.cli(["port", "--json", "demo"]).run().succeeds().json();
    let address = ports[0]["host"].as_str().expect("the port is published");
    let said = std::io::read_to_string(TcpStream::connect(address).expect("the supervisor listens")).ok();
    assert_eq!(said.as_deref(), Some("hello"), "a connection to the port does not resume the sandbox");

    // A copy of a file is a use.
    assert!(eventually(SOON, rests).is_some(), "never paused again");
    assert_eq!(home.cli(["cp", "demo:/etc/hostname", "-"]).run().succeeds().out(), "demo\n");

    // A sandbox that the user paused stays paused, even if the idle rule had paused it before.
    assert!(eventually(SOON, rests).is_some(), "never paused again");
    let _ = home.cli(["pause", "demo"]).run().succeeds();
    let _ = sandbox.sh("true").fails_with(&["paused", "resume"]);
    let _ = home.cli(["resume", "demo"]).run().succeeds();
    let _ = sandbox.sh("true").succeeds();
    // Snapshots and resets are uses. A sandbox that the idle rule paused still stops gracefully.
    assert!(eventually(SOON, rests).is_some(), "never paused again");
    let _ = home.cli(["reset", "demo"]).run().succeeds();
    assert!(eventually(SOON, rests).is_some(), "never paused again");
    let stopped = home.cli(["stop", "demo"]).run().succeeds();
    let reason = home.row(&sandbox.id)["reason"].to_string();
    assert!(reason.contains("guest"), "{reason}: {}", stopped.err());
    assert!(!stopped.err().contains("force"), "{}", stopped.err());
    let _ = home.cli(["rm", "demo"]).run().succeeds();

    // Other idle rules, and rules for copies.
    let parent = home.create(&["-m", SMALL]);
    let copies = home.cli(["fork", &parent.id, "-n", "2", "--idle", "1s=rm"]).run().succeeds().out();
    let copies: Vec<_> = copies.lines().map(|id| Sandbox::called(&home, id)).collect();
    assert_eq!(copies.len(), 2);
    let gone = eventually(SOON, || copies.iter().all(|copy| !copy.directory().exists()).then_some(()));
    assert!(gone.is_some(), "unused copies were not removed");
    assert_eq!(phase(&parent), "ready");
    parent.remove();
    home.assert_nothing_left();
}

#[test]
fn rules_survive_the_kill_of_any_process() {
    let Some(home) = Home::with_kvm() else { return };
    let socket = home.scratch("x.sock");
    let at_socket = format!("{}:80", socket.display());
    let sandbox = home.create(&["-m", SMALL, "--name", "demo", "--ttl", "20s=rm", "-p", "80", "-p", &at_socket]);
    let (until, ports) = (deadline(&sandbox), home.cli(["port", "demo"]).run().succeeds().out());

    let first = supervisor(&sandbox).expect("the sandbox is supervised");
    processes::kill(first);
    let gone = eventually(SOON, || (!processes::is_alive(first)).then_some(()));
    assert!(gone.is_some(), "the supervisor still runs");
    // Commands that only read report that the sandbox is unsupervised. The next command that uses
    // it starts a supervisor.
    let row = home.row(&sandbox.id);
    assert_eq!((&row["state"], &row["supervision"]["supervised"]), (&Value::from("running"), &Value::from(false)));
    for looking in [vec!["ls"], vec!["inspect", "demo"]] {
        let looked = home.cli(&looking).run().succeeds();
        assert!(
            looked.err().contains("demo is unsupervised, and its --ttl and published ports have no effect"),
            "{looking:?}"
        );
        assert_eq!(looked.out().contains("(unsupervised)"), looking == ["ls"], "{}", looked.transcript());
    }
    let _ = home.cli(["stats", "--json", "demo"]).run().succeeds();
    assert_eq!(
        home.row(&sandbox.id)["supervision"]["supervised"],
        false,
        "a command that only reads started a supervisor"
    );
    let _ = sandbox.sh("true").succeeds();
    let second = eventually(SOON, || supervisor(&sandbox)).expect("the command starts another supervisor");
    assert_ne!(first, second);
    // The new supervisor has the same ports and the same deadline.
    let listens = eventually(SOON, || UnixStream::connect(&socket).ok());
    assert!(listens.is_some(), "the new supervisor did not replace the old socket");
    assert_eq!(home.cli(["port", "demo"]).run().succeeds().out(), ports);
    assert_eq!(home.row(&sandbox.id)["supervision"]["supervised"], true);
    assert_eq!(deadline(&sandbox), until);
    let removed = eventually(SOON, || (!sandbox.directory().exists()).then_some(()));
    assert!(removed.is_some(), "the sandbox did not expire");
    assert!(!socket.exists());
    home.assert_nothing_left();

    // The VMM is killed, and its supervisor ends with it.
    let sandbox = home.create(&["-m", SMALL, "--ttl", "1h", "-p", &at_socket]);
    let supervisor_pid = supervisor(&sandbox).expect("the sandbox is supervised");
    processes::kill(sandbox.vmm_pid());
    let ended = eventually(SOON, || (!processes::is_alive(supervisor_pid)).then_some(()));
    assert!(ended.is_some(), "a supervisor outlives its sandbox");
    assert_eq!(home.row(&sandbox.id)["state"], "dead");
    let _ = home.cli(["prune"]).run().succeeds();
    home.assert_nothing_left();

    // Both are killed, and the remaining socket is removed with the sandbox.
    let sandbox = home.create(&["-m", SMALL, "-p", &at_socket]);
    processes::kill(supervisor(&sandbox).expect("the sandbox is supervised"));
    assert!(socket.exists());
    sandbox.remove();
    assert!(!socket.exists(), "the socket outlives its sandbox");
    home.assert_nothing_left();

    // In the foreground, `run` removes the sandbox.
    let run = home.cli(["run", "-m", SMALL, "--ttl", "5s", "--", "sleep", "600"]).run();
    // The end is graceful: the command receives SIGTERM.
    assert_eq!(run.exits(143).out(), "");
    home.assert_nothing_left();
}
