//! A sandbox that ends takes along everything that its VMM started, whatever code took the VMM over, and no other sandbox.
//! Where a VMM is in no control group its session says what is its; each attack is shown to work without either.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use rustix::process::{Pid, Signal, kill_process};
use sandboxvm_protocol::vmm::users;
use sandboxvm_tests::{
    cli::{Invocation, patience},
    drills,
    home::{Home, SMALL, Sandbox, eventually},
    server::Server,
};
use serde_json::json;
use std::{fs, thread, time::Duration};

const SOON: Duration = Duration::from_secs(60);

/// What a guest has its VMM do.
const ATTACKS: [&str; 3] = ["close-lock", "leave-child", "fill-status"];

/// Processes with the user that only this VMM, and what it started, have.
fn family(vmm: u32) -> Vec<u32> {
    let user = users::of_vmm(vmm).to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_owned()
        };
        field("Uid:") == user && field("State:") != "Z"
    })
    .collect()
}

/// A process that its parent has not waited for yet no longer runs.
fn ended(pid: u32) -> Option<()> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|fields| fields.is_empty() || fields.starts_with('Z')).then_some(())
}

#[track_caller]
fn goes_away(vmm: u32, what: &str) {
    let gone = eventually(SOON, || family(vmm).is_empty().then_some(()));
    assert!(gone.is_some(), "{what}: processes {:?} live on", family(vmm));
    eprintln!("ended: {what}");
}

/// A host with control groups, or one without.
#[derive(Clone, Copy)]
struct Host<'h> {
    home: &'h Home,
    groups: bool,
}

impl<'h> Host<'h> {
    fn cli(self, arguments: &[&str]) -> Invocation {
        if self.groups { self.home.cli(arguments) } else { self.home.cli_without_groups(arguments) }
    }

    fn server(self) -> Server {
        let config = sandboxvm_tests::server::small_config();
        if self.groups { Server::start(self.home, &config) } else { Server::start_without_groups(self.home, &config) }
    }

    /// Creates a sandbox and makes its guest perform the attack. The number is the PID of its VMM.
    #[track_caller]
    fn taken_over(self, attack: &str, flags: &[&str]) -> (Sandbox<'h>, u32) {
        let made = self.cli(&["create", "-m", SMALL]).args(flags).run().succeeds();
        let sandbox = Sandbox::printed(self.home, &made);
        let vmm = self.take_over(&sandbox, attack);
        (sandbox, vmm)
    }

    #[track_caller]
    fn take_over(self, sandbox: &Sandbox<'_>, attack: &str) -> u32 {
        assert_eq!(sandbox.directory().join("group").is_symlink(), self.groups, "{:?}", sandbox.directory());
        let vmm = sandbox.vmm_pid();
        attacks(sandbox, vmm, attack);
        vmm
    }
}

/// Makes the guest have its VMM perform the attack, and waits until it has worked.
#[track_caller]
fn attacks(sandbox: &Sandbox<'_>, vmm: u32, attack: &str) {
    let lock = fs::metadata(sandbox.directory().join("lock")).unwrap();
    // The guest cannot know how the connection ends that its VMM carries.
    let _ = sandbox.sh(&drills::asked_from_within(attack));
    let worked = eventually(SOON, || match attack {
        "fill-status" => (fs::metadata(sandbox.directory().join("status.json")).unwrap().len() > 65_536).then_some(()),
        "leave-child" => (!holds(vmm, &lock) && family(vmm).len() > 1).then_some(()),
        _ => (!holds(vmm, &lock)).then_some(()),
    });
    let log = fs::read_to_string(sandbox.directory().join("vmm.log")).unwrap_or_default();
    assert!(worked.is_some(), "{attack} does not work: {log}");
}

fn holds(pid: u32, file: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut files = descriptors.filter_map(|descriptor| fs::metadata(descriptor.path()).ok());
    files.any(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
}

#[test]
#[ignore = "soak: a matrix of 18 sandboxes, each of which is a busy guest"]
fn taken_over_vmms_end_with_their_sandboxes_in_control_groups() {
    ends_by_every_way(true);
}

#[test]
#[ignore = "soak: a matrix of 18 sandboxes, each of which is a busy guest"]
fn taken_over_vmms_end_with_their_sandboxes_without_control_groups() {
    ends_by_every_way(false);
}

/// Ends a sandbox by every way after every attack: no process of the VMM is left, and nothing of the sandbox that should
/// not be. In one home, since its first sandbox boots.
fn ends_by_every_way(groups: bool) {
    if !drills::are_wanted() {
        return;
    }
    let Some(home) = Home::with_drills("", "") else { return };
    home.create(&["-m", SMALL]).remove();
    let hosts = [Host { home: &home, groups }];
    let cells = ATTACKS.map(|attack| (hosts[0], attack));

    // These expire while the others are ended, and not before the attack has worked, which takes minutes on a busy host.
    let ttl = format!("{}s=rm", 60 * patience());
    let expiring = each(&cells, |host, attack| (host.taken_over(attack, &["--ttl", &ttl]), what(host, attack)));
    let mut key = None;
    for host in hosts {
        let mut server = host.server();
        key = server.key.take().or(key);
        server.key.clone_from(&key);
        let cells = ATTACKS.map(|attack| (host, attack));
        each(&cells, |host, attack| {
            let what = what(host, attack);
            let (sandbox, vmm) = host.taken_over(attack, &[]);
            let _ = host.cli(&["rm", "-f", &sandbox.id]).run().succeeds();
            goes_away(vmm, &format!("rm of {what}"));
            assert!(!sandbox.directory().exists(), "rm of {what}");

            let (sandbox, vmm) = host.taken_over(attack, &[]);
            let _ = host.cli(&["stop", "-t", "1s", &sandbox.id]).run().succeeds();
            goes_away(vmm, &format!("stop of {what}"));
            let state = home.row(&sandbox.id)["state"].clone();
            assert!(state == "dead" || state == "exited", "stop of {what}: {state}");
            let _ = host.cli(&["rm", &sandbox.id]).run().succeeds();

            for way in ["DELETE", "timeout"] {
                ended_by_server(host, &server, attack, way);
            }
        });
        server.stop();
    }
    for ((sandbox, vmm), what) in &expiring {
        goes_away(*vmm, &format!("expiry of {what}"));
        let removed = || (!sandbox.directory().exists()).then_some(());
        assert!(eventually(SOON, removed).is_some(), "expiry of {what}");
    }
    for host in hosts {
        let doomed = each(&ATTACKS.map(|attack| (host, attack)), |host, attack| (host.taken_over(attack, &[]), attack));
        let _ = host.cli(&["prune"]).run().succeeds();
        for ((sandbox, vmm), attack) in &doomed {
            let what = format!("prune of {}", what(host, attack));
            if *attack == "fill-status" {
                // It holds its lock, so it runs as far as any other process can tell; what its status says keeps no command from it.
                assert_eq!(home.row(&sandbox.id)["state"], "running", "{what}");
                let _ = host.cli(&["inspect", &sandbox.id]).run().succeeds();
                attacks(sandbox, *vmm, "close-lock");
                let _ = host.cli(&["prune"]).run().succeeds();
            }
            goes_away(*vmm, &what);
            assert!(!sandbox.directory().exists(), "{what}");
        }
    }
    home.assert_nothing_left();
}

fn what(host: Host<'_>, attack: &str) -> String {
    format!("{attack}, {} control groups", if host.groups { "with" } else { "without" })
}

/// All cells, two at a time: each is one guest, which keeps a processor busy.
fn each<'h, T: Send>(cells: &[(Host<'h>, &'static str)], act: impl Fn(Host<'h>, &'static str) -> T + Sync) -> Vec<T> {
    let parts = cells.chunks(cells.len().div_ceil(2));
    let act = &act;
    thread::scope(|scope| {
        let threads: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(|(host, attack)| act(*host, attack)).collect::<Vec<T>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("the words of a cell that failed are above"))
            .collect()
    })
}

/// By the call that ends it, or by the timeout that a client gave it.
#[track_caller]
fn ended_by_server(host: Host<'_>, server: &Server, attack: &str, way: &str) {
    let what = format!("{way} at the server of {}", what(host, attack));
    let made = server.create(&json!({ "templateID": "base", "timeout": 600 }));
    let id = made["sandboxID"].as_str().unwrap().to_owned();
    let sandbox = Sandbox::called(host.home, &id);
    let vmm = host.take_over(&sandbox, attack);
    let path = format!("/sandboxes/{id}");
    if way == "DELETE" {
        let _ = server.ask("DELETE", &path, None).expect(204);
    } else {
        let _ = server.ask("POST", &format!("{path}/timeout"), Some(&json!({ "timeout": 1 }))).expect(204);
    }
    goes_away(vmm, &what);
    let record = host.home.path().join("server/sandboxes").join(format!("{id}.json"));
    // The server forgets it before its record goes.
    let gone = || {
        let is_unknown = server.ask("GET", &path, None).status == 404;
        (is_unknown && !sandbox.directory().exists() && !record.exists()).then_some(())
    };
    assert!(eventually(SOON, gone).is_some(), "{what}: something is left of it");
}

#[test]
fn a_server_ends_a_vmm_that_was_taken_over() {
    if !drills::are_wanted() {
        return;
    }
    let Some(home) = Home::with_drills("", "") else { return };
    let server = Server::start(&home, &sandboxvm_tests::server::small_config());
    for attack in ATTACKS {
        let made = server.create(&json!({ "templateID": "base", "timeout": 600 }));
        let id = made["sandboxID"].as_str().unwrap().to_owned();
        let sandbox = Sandbox::called(&home, &id);
        let vmm = sandbox.vmm_pid();
        attacks(&sandbox, vmm, attack);
        let _ = server.ask("DELETE", &format!("/sandboxes/{id}"), None).expect(204);
        goes_away(vmm, attack);
        assert!(!sandbox.directory().exists(), "{attack}");
    }
}

/// Without a group, and with a filter that lets it leave its session, it lives on: so the group ends it, and the session
/// where there is none.
#[test]
fn a_child_outlives_its_sandbox_only_without_group_and_filter() {
    if !drills::are_wanted() {
        return;
    }
    let Some(home) = Home::with_drills("seccomp", "1") else { return };
    let [with, without] = [true, false].map(|groups| Host { home: &home, groups });
    let (sandbox, vmm) = without.taken_over("leave-child", &[]);
    let child = family(vmm).into_iter().find(|pid| *pid != vmm).unwrap();
    let _ = home.cli_without_groups(["rm", "-f", &sandbox.id]).run().succeeds();
    assert!(eventually(SOON, || (family(vmm) == [child]).then_some(())).is_some(), "{:?}", family(vmm));
    kill_process(Pid::from_raw(child.cast_signed()).unwrap(), Signal::KILL).unwrap();
    goes_away(vmm, "the test's own kill");

    let (sandbox, vmm) = with.taken_over("leave-child", &[]);
    let _ = home.cli(["rm", "-f", &sandbox.id]).run().succeeds();
    goes_away(vmm, "with a group");
}

/// The copies are in the session of their parent, have its user, and were born into its group.
#[test]
fn the_end_of_a_parent_leaves_its_live_forks_running() {
    forks_outlive(&[(true, "rm"), (false, "stop"), (true, "expiry")]);
}

#[test]
#[ignore = "soak: the other ways, with and without control groups"]
fn the_end_of_a_parent_by_any_way_leaves_its_live_forks_running() {
    forks_outlive(&[(false, "rm"), (true, "stop"), (false, "expiry")]);
}

fn forks_outlive(ways: &[(bool, &str)]) {
    let Some(home) = Home::with_kvm() else { return };
    for &(groups, way) in ways {
        let cli = |arguments: &[&str]| if groups { home.cli(arguments) } else { home.cli_without_groups(arguments) };
        // It has to be forked before it expires.
        let ttl = format!("{}s=rm", 10 * patience());
        let flags: &[&str] = if way == "expiry" { &["--ttl", &ttl] } else { &[] };
        let made = cli(&["create", "-m", SMALL]).args(flags).run().succeeds();
        let parent = Sandbox::printed(&home, &made);
        let vmm = parent.vmm_pid();
        let forked = cli(&["fork", "-n", "2", &parent.id]).run().succeeds();
        let copies: Vec<Sandbox<'_>> = forked.out().lines().map(|id| Sandbox::called(&home, id)).collect();
        assert_eq!(copies.len(), 2, "{}", forked.transcript());
        match way {
            "rm" => drop(cli(&["rm", "-f", &parent.id]).run().succeeds()),
            "stop" => drop(cli(&["stop", "-t", "1s", &parent.id]).run().succeeds()),
            _ => {}
        }
        assert!(eventually(Duration::from_secs(120), || ended(vmm)).is_some(), "{way}: the parent lives");
        for copy in &copies {
            let _ = copy.sh("true").succeeds();
        }
        // And each of them ends alone.
        let _ = cli(&["rm", "-f", &copies[0].id]).run().succeeds();
        let _ = copies[1].sh("true").succeeds();
        let last = copies[1].vmm_pid();
        let _ = cli(&["rm", "-f", &copies[1].id]).run().succeeds();
        assert!(ended(last).is_some(), "{way}: the last copy lives");
        let _ = cli(&["rm", "-f", &parent.id]).run();
    }
    home.assert_nothing_left();
}
