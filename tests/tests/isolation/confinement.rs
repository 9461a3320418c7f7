//! What a process that took over a VMM would find: no files, no network, no privileges, and no way
//! to get them back. These tests look from outside at a VMM whose guest was restored from a
//! snapshot, and at a forked one. `drills.rs` attacks the same restrictions from inside.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use sandboxvm_protocol::vmm::{ExitReason, VmmThread, users};
use sandboxvm_tests::{
    drills::{Drill, Outcome},
    home::{Home, SMALL, Sandbox},
    host::processes,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

fn status_field(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("no {field} in {status}"));
    line.split_once(':').expect("a field has a value").1.trim().to_owned()
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(Path::new("/proc").join(pid).join("ns").join(kind)).expect("the process runs")
}

/// `user` is the user of this VMM. A live fork has the user of its parent.
fn assert_confined(pid: u32, user: u32) {
    let process = Path::new("/proc").join(pid.to_string());
    let tasks: Vec<u32> = fs::read_dir(process.join("task"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    assert!(tasks.len() >= 2, "an event loop and a vCPU at least");
    for task in tasks {
        assert_eq!(status_field(task, "NoNewPrivs"), "1");
        assert_eq!(status_field(task, "Seccomp:").split_whitespace().next(), Some("2"), "every thread has a filter");
        let filters = if task == pid { "1" } else { "2" };
        assert_eq!(status_field(task, "Seccomp_filters"), filters, "a vCPU thread has a second, narrower filter");
        for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status_field(task, capabilities), "0000000000000000", "{capabilities}");
        }
        for id in ["Uid", "Gid"] {
            let wanted = user.to_string();
            assert!(status_field(task, id).split_whitespace().all(|id| id == wanted), "{id} is not {wanted} alone");
        }
        assert_eq!(status_field(task, "Groups"), "");
    }
    assert_eq!(fs::read_dir(process.join("root")).unwrap().count(), 0, "its root directory is not empty");
    for kind in ["user", "mnt", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind} namespace is the host's");
    }
    assert_eq!(fs::read_to_string(process.join("uid_map")).unwrap(), "", "its user namespace maps a user of the host");
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{limits}"));
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    for (name, most) in [
        ("Max core file size", 0),
        ("Max locked memory", 0),
        ("Max msgqueue size", 0),
        ("Max realtime priority", 0),
        ("Max open files", 4096),
        ("Max processes", 4096),
        ("Max stack size", 8 << 20),
        // 128 MiB for the guest, and 1 GiB in addition; one byte for each 2 KiB of disk.
        ("Max address space", 1300 << 20),
        ("Max file size", 32 << 30),
    ] {
        let bounded = limit(name).iter().all(|limit| limit.parse::<u64>().is_ok_and(|limit| limit <= most));
        assert!(bounded, "{name}: {:?}", limit(name));
    }
    assert_eq!(fs::read_to_string(process.join("oom_score_adj")).unwrap(), "500\n", "the OOM killer prefers VMMs");
    let environment = fs::read(process.join("environ")).unwrap();
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
}

/// If the host can provide control groups of version 2, each VMM has one, and nothing else is in
/// it.
fn assert_alone_in_its_group(sandbox: &Sandbox<'_>) {
    let Ok(group) = fs::read_link(sandbox.directory().join("group")) else {
        assert!(
            !sandboxvm_manager::containment().group,
            "the host can provide a control group, but the sandbox has none"
        );
        return;
    };
    assert_eq!(processes::in_group(&group), [sandbox.vmm_pid()], "{}", group.display());
}

/// Files that several machines share are open for reading only.
fn assert_shared_files_are_read_only(home: &Home, pid: u32) {
    let mut shared = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let fd = entry.unwrap().file_name().into_string().unwrap();
        let path = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        let own = path.starts_with(home.path().join("sandboxes"));
        if !path.starts_with("/") || path.starts_with("/dev") || own {
            continue;
        }
        shared += 1;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("fdinfo has flags").trim();
        // The flags are octal. O_ACCMODE is the lowest two bits, and O_RDONLY is 0.
        assert!(flags.ends_with(['0', '4']), "{} is open for writing: {flags}", path.display());
    }
    assert!(shared >= 4, "image, agent, template and memory: {shared}");
}

#[test]
fn a_running_vmm_has_nothing_of_the_host() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let pid = sandbox.vmm_pid();
    assert_confined(pid, users::of_vmm(pid));
    assert_shared_files_are_read_only(&home, pid);
    assert_alone_in_its_group(&sandbox);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3));
    assert_eq!(session, Some(pid.to_string().as_str()), "the VMM does not lead its own session: {stat}");
    assert_eq!(sandbox.sh("echo and it works").succeeds().out(), "and it works\n");

    let forked = home.cli(["fork", &sandbox.id]).deadline(Duration::from_secs(240)).run().succeeds();
    let child = Sandbox::called(&home, forked.out().trim());
    // When the VMM forks, it has no privilege left with which the fork could change to another
    // user.
    assert_confined(child.vmm_pid(), users::of_vmm(pid));
    assert_alone_in_its_group(&child);
    assert_alone_in_its_group(&sandbox);
    assert_shared_files_are_read_only(&home, child.vmm_pid());
    let inspected = home.cli(["inspect", &child.id]).run().succeeds().json();
    assert_eq!(inspected[0]["unconfined"], serde_json::json!([]));
}

#[test]
fn only_the_owner_can_use_the_sockets_and_files_of_a_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for directory in [home.path(), home.path().join("sandboxes"), sandbox.directory()] {
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
    }
    for entry in fs::read_dir(sandbox.directory()).unwrap() {
        let path = entry.unwrap().path();
        // Some files are links. Those to the bundle lead to files that every user may read if the
        // bundle is readable. The link to the control group leads to files that the VMM's user can
        // only read.
        if !["agent", "image", "group"].iter().any(|shared| path.ends_with(shared)) {
            assert_eq!(mode(&path) & 0o177, 0, "{}", path.display());
        }
    }
}

#[test]
fn listings_name_the_system_call_for_which_a_vmm_was_ended() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "taken-over"]);
    let mut drill = Drill::of("exec").at("/bin/true").start(None);
    assert!(sandboxvm_tests::home::eventually(Duration::from_secs(20), || drill.ended()).is_some());
    let reason = drill.status().expect("the VMM wrote its status").reason;
    assert_eq!(reason, Some(ExitReason::ForbiddenCall { number: 59, thread: VmmThread::Vcpu }));
    assert_eq!(Drill::of("exec").at("/bin/true").outcome(), Outcome::Refused("execve", VmmThread::Vcpu));
    // Puts the status file of that VMM into the place of this one's.
    let pid = rustix::process::Pid::from_raw(i32::try_from(sandbox.vmm_pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // Where no process waits for orphans, it stays as a zombie.
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let gone = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")).then_some(());
    assert!(sandboxvm_tests::home::eventually(Duration::from_secs(20), gone).is_some());
    fs::copy(drill.file("status.json"), sandbox.directory().join("status.json")).unwrap();

    let words = "ended by the system call filter: call 59 (execve) in a vCPU thread";
    let _ = sandbox.exec(["--", "true"]).run().fails_with(&[words]);
    let inspected = home.cli(["inspect", "taken-over"]).run().succeeds().json();
    assert_eq!(inspected[0]["state"], "exited");
    assert_eq!(inspected[0]["reason"], serde_json::json!({"forbidden_call": {"number": 59, "thread": "vcpu"}}));
    let listed = home.cli(["ls"]).run().succeeds().out();
    assert!(listed.contains("exited"), "{listed}");
}

#[test]
fn doctor_says_how_far_a_vmm_is_confined() {
    let Some(home) = Home::with_kvm() else { return };
    let report = home.cli(["doctor", "--json"]).run().succeeds().json();
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "confinement").cloned();
    assert_eq!(check.expect("doctor checks the confinement")["verdict"], "ok", "as root");
}
