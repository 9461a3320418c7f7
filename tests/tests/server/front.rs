//! The two processes of the server: what the front may not do, and what the end of either means.

use sandboxvm_tests::{
    home::Home,
    server::{Server, small_config},
    waiting::eventually,
};
use serde_json::json;
use std::{fs, os::unix::process::CommandExt, process::Command, time::Duration};

/// The front of a server.
fn front(server: &Server) -> u32 {
    let pid = server.pid();
    let found = eventually(Duration::from_secs(30), || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let is_front = |child: &str| {
            fs::read(format!("/proc/{child}/cmdline"))
                .is_ok_and(|line| line.split(|b| *b == 0).any(|a| a == b"serve-front"))
        };
        children.split_whitespace().find(|child| is_front(child))?.parse().ok()
    });
    found.expect("the server has a front")
}

fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.expect("a line of proc(5)").trim().to_owned()
}

fn is_gone(pid: u32) -> bool {
    !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn the_front_has_no_privileges_and_no_file_of_the_home() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let front = front(&server);
    for task in fs::read_dir(format!("/proc/{front}/task")).expect("the front has threads").flatten() {
        let thread: u32 = task.file_name().to_string_lossy().parse().expect("a number");
        assert_eq!((status(thread, "NoNewPrivs"), status(thread, "Seccomp")), ("1".to_owned(), "2".to_owned()));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(thread, set), "0000000000000000", "{set}");
        }
    }
    let files: Vec<String> = fs::read_dir(format!("/proc/{front}/fd"))
        .expect("root may look")
        .flatten()
        .filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned()))
        .filter(|target| target.starts_with('/'))
        .collect();
    let allowed = |path: &String| path == "/dev/null" || path.ends_with("server.log");
    assert!(files.iter().all(allowed), "{files:?}");
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let uid: u32 = status(front, "Uid").split_whitespace().next().and_then(|uid| uid.parse().ok()).expect("a number");
    assert!(uid != 0, "the front is root");
    assert_eq!(status(front, "Groups"), "");
    // Whatever its filter and its root are, its user has no way to the home. The launcher's has.
    let secret = home.path().join("server/secret");
    let reads = |uid: u32| {
        let read = Command::new("cat").arg(&secret).uid(uid).gid(uid).output().expect("cat runs");
        read.status.success()
    };
    assert!(reads(0) && !reads(uid), "user {uid} reads the secret of the server");
    let below = |pid| fs::read_dir(format!("/proc/{pid}/root/")).expect("root may look").count();
    assert_eq!(below(front), 0, "the root of the front is empty");
    assert!(below(server.pid()) > 0);
}

#[test]
fn a_front_that_ends_is_replaced_and_sandboxes_live_on() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let made = server.create(&json!({ "templateID": "base", "timeout": 600 }));
    let id = made["sandboxID"].as_str().expect("an ID");
    let first = front(&server);
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).expect("a PID");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("root may end it");
    eventually(Duration::from_secs(10), || is_gone(first).then_some(())).expect("the front ends");
    // Connections wait in the listeners, which the launcher keeps.
    let found = server.ask("GET", &format!("/sandboxes/{id}"), None).expect(200).json();
    assert_eq!(found["state"], "running");
    assert_ne!(front(&server), first);
    assert!(server.log().contains("the front has ended"), "{}", server.log());
    let _ = server.ask("DELETE", &format!("/sandboxes/{id}"), None).expect(204);
    server.stop();
    home.assert_nothing_left();
}

#[test]
fn the_end_of_the_launcher_is_the_end_of_its_front() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let front = front(&server);
    server.kill();
    eventually(Duration::from_secs(10), || is_gone(front).then_some(())).expect("the front ends");
    let server = Server::start(&home, &small_config());
    server.stop();
}
