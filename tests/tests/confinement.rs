//! What a process that took over a VMM would find: no files, no network, no privileges, no way back. Looked at from
//! outside, on a VMM that runs a guest, on one restored from a snapshot and on a forked one alike.

use sandboxvm_tests::home::{Home, SMALL};
use std::{fs, path::Path};

fn status_field(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("no {field} in {status}"));
    line.split_once(':').expect("a field has a value").1.trim().to_owned()
}

fn namespace(pid: &str, kind: &str) -> std::path::PathBuf {
    fs::read_link(Path::new("/proc").join(pid).join("ns").join(kind)).expect("the process lives")
}

#[test]
fn a_running_vmm_has_nothing_of_the_host() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let pid = sandbox.vmm_pid();
    let process = Path::new("/proc").join(pid.to_string());
    let tasks: Vec<u32> = fs::read_dir(process.join("task"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    assert!(tasks.len() >= 2, "an event loop and a vCPU at least");
    for task in tasks {
        assert_eq!(status_field(task, "NoNewPrivs"), "1");
        assert_eq!(status_field(task, "Seccomp:").split_whitespace().next(), Some("2"), "a filter, in every thread");
        for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status_field(task, capabilities), "0000000000000000", "{capabilities}");
        }
        for id in ["Uid", "Gid"] {
            assert!(status_field(task, id).split_whitespace().all(|id| id != "0"), "{id} of root");
        }
        assert_eq!(status_field(task, "Groups"), "");
    }
    assert_eq!(fs::read_dir(process.join("root")).unwrap().count(), 0, "its root holds something");
    for kind in ["mnt", "net", "ipc", "uts"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind} namespace is the host's");
    }
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let environment = fs::read(process.join("environ")).unwrap();
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3));
    assert_eq!(session, Some(pid.to_string().as_str()), "a session of its own: {stat}");
    assert_eq!(sandbox.sh("echo and it works").succeeds().out(), "and it works\n");
}
