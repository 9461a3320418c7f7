//! The comparison program distinguishes a sandbox from an environment that isolates nothing. The
//! same rogue runs in a chroot, from which root reaches the host, and in sandboxvm.

use sandboxvm_tests::{artefacts::kvm_is_wanted, cli::patience};
use serde_json::Value;
use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(300);
/// The probes that need only one short run in each environment.
const PROBES: &str = "processes,kill,escape,file,network,outside,abstract,ipc,hostname,clock";

/// Runs the comparison. Returns its report and its PID.
fn compare(arguments: &[&str]) -> (Value, u32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
    command.args(arguments).args(["--runs", "0", "--json"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the program was built with this test");
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if begin.elapsed() > DEADLINE * patience() {
            child.kill().expect("a child can be killed");
            panic!("the comparison has not ended in {DEADLINE:?}, times SANDBOXVM_TEST_PATIENCE");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut report = String::new();
    // The report fits into the buffer of a pipe, so the program never blocks.
    child.stdout.take().expect("stdout is piped").read_to_string(&mut report).expect("a report is text");
    assert!(status.success(), "{status}: {report}");
    (serde_json::from_str(&report).expect("--json prints JSON"), child.id())
}

#[test]
fn a_rogue_reaches_the_host_from_a_chroot_and_not_from_a_sandbox() {
    if !kvm_is_wanted() {
        eprintln!("left out: SANDBOXVM_NO_KVM=1");
        return;
    }
    let (report, pid) = compare(&["--only", "chroot,sandboxvm", "--probes", PROBES]);
    let columns = report["contenders"].as_array().expect("a report has columns");
    let names: Vec<&str> = columns.iter().filter_map(|column| column["name"].as_str()).collect();
    assert_eq!(names, ["chroot", "sandboxvm"], "{report:#}");
    for probe in PROBES.split(',') {
        for (column, expected) in columns.iter().zip(["exposed", "contained"]) {
            // A host without a network card has no address that is not its loopback.
            if probe == "outside" && column["probes"][probe]["verdict"] == "not-run" {
                continue;
            }
            assert_eq!(column["probes"][probe]["verdict"], expected, "{probe} in {}: {report:#}", column["name"]);
        }
    }
    assert_nothing_left(pid);
}

/// Names of everything that the comparison creates contain its PID.
#[track_caller]
fn assert_nothing_left(pid: u32) {
    let ours = format!("sandboxvm-compare-{pid}-");
    for place in ["/dev/shm", "/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"] {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(!name.starts_with(&ours), "{place}/{name} was left");
        }
    }
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&arguments).contains(&ours), "process {} was left", entry.path().display());
    }
}
