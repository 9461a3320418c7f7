//! The limits of a sandbox. No program in it can take more, neither from its own sandbox nor from
//! others nor the host.

use rustix::fs::statvfs;
use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    host::{memory, processes},
};
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// For what takes seconds on an idle machine.
const SOON: Duration = Duration::from_secs(180);
const SIZE_OF_CONSOLE_LOG: u64 = 1 << 20;

/// Starts a shell script in the background and returns its PID.
#[track_caller]
fn detach(sandbox: &Sandbox<'_>, script: &str) -> String {
    sandbox.exec(["-d", "--", "sh", "-c", script]).run().succeeds().out().trim().to_owned()
}

/// Returns the number in a file of the guest.
#[track_caller]
fn number_in(sandbox: &Sandbox<'_>, file: &str) -> u64 {
    let out = sandbox.exec(["--", "cat", file]).run().succeeds().out();
    out.trim().parse().unwrap_or_else(|_| panic!("{file} contains {out:?}"))
}

/// Ends a process and its group, and waits until the agent is the only process left.
#[track_caller]
fn end(home: &Home, sandbox: &Sandbox<'_>, pid: &str) {
    let _ = home.cli(["kill", &sandbox.id, pid, "-s", "KILL"]).run().succeeds();
    let _ = home.cli(["wait", &sandbox.id, pid]).run().exits(137);
    let alone = || (number_in(sandbox, "/sys/fs/cgroup/sandbox/pids.current") == 1).then_some(());
    assert!(eventually(SOON, alone).is_some(), "a process of the group {pid} still runs");
}

/// Free memory and disk space of the host, which no guest may use beyond its limits.
#[derive(Debug)]
struct Host {
    available_kib: u64,
    room: u64,
    home: PathBuf,
}

impl Host {
    fn look(home: &Home) -> Self {
        let path = home.path();
        Self { available_kib: available_kib(), room: room(&path), home: path }
    }

    /// Asserts that the host has lost no more memory and disk space than the sandbox may use, plus
    /// some for other processes.
    #[track_caller]
    fn assert_spared(&self, memory_kib: u64, disk: u64) {
        const OTHERS: u64 = 3 << 20;
        let now = Self { available_kib: available_kib(), room: room(&self.home), home: self.home.clone() };
        assert!(now.available_kib + memory_kib + OTHERS > self.available_kib, "memory: {self:?} -> {now:?}");
        assert!(now.room + disk + (OTHERS << 10) > self.room, "disk: {self:?} -> {now:?}");
    }
}

fn available_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let line =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("/proc/meminfo has MemAvailable");
    line.trim().strip_suffix(" kB").and_then(|number| number.parse().ok()).expect("a number of KiB")
}

fn room(path: &std::path::Path) -> u64 {
    let stat = statvfs(path).expect("a file system");
    stat.f_bavail * stat.f_frsize
}

/// Returns how many bytes of a process's output are kept, as `ps` shows it. The agent needs no
/// process to respond.
#[track_caller]
fn kept_bytes(home: &Home, sandbox: &Sandbox<'_>, pid: &str) -> u64 {
    let rows = home.cli(["ps", "--json", &sandbox.id]).run().succeeds().json();
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["pid"].as_u64() == pid.parse().ok()));
    row.and_then(|row| row["kept_bytes"].as_u64()).unwrap_or_else(|| panic!("ps does not show {pid}: {rows}"))
}

/// Prints its priority, scheduler, maximum number of open files, and how many it could open. 145 is
/// sched_getscheduler(2), 32 is dup(2).
const ORDINARY: &str = "
$| = 1;
print getpriority(0, 0), ' ', syscall(145, 0), ' ', `ulimit -Sn; ulimit -Hn`;
syscall(3, $_) for 3 .. 99;
$n++ while syscall(32, 0) >= 0;
print $n, ' ', $! + 0, qq(\\n);
syscall(3, $_) for 3 .. 99;
exec 'cat', '/proc/self/cgroup', '/proc/1/cgroup';
";

/// Starts as many sleeping processes as the sandbox may have. The shell that cannot start another
/// one ends, so there is room for one more.
const FILL: &str = "mkfifo /tmp/never; sh -c 'while :; do (read x </tmp/never) & done' 2>/tmp/said
                    (read x </tmp/never) & echo full; read x </tmp/never";

#[test]
fn processes_and_open_files_are_limited_and_a_fork_bomb_does_not_stop_the_agent() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--pids", "20", "--nofile", "100"]);
    let ordinary = sandbox.exec(["--", "perl", "-e", ORDINARY]).run().succeeds();
    assert_eq!(ordinary.out(), "0 0 100\n100\n97 24\n0::/sandbox\n0::/\n");

    // At the limit no program can start another process. A command from the host can, in the
    // reserve and with a higher priority.
    let pid = detach(&sandbox, FILL);
    let said = || home.cli(["logs", &sandbox.id, &pid]).run().succeeds().out();
    let full = eventually(SOON, || Some(said()).filter(|said| !said.is_empty()));
    assert_eq!(full.as_deref(), Some("full\n"));
    let rescue = sandbox.sh("cat /proc/self/cgroup; (nice); cat /sys/fs/cgroup/sandbox/pids.current /tmp/said");
    assert_eq!(rescue.succeeds().out(), "0::/reserve\n-15\n20\nsh: 0: Cannot fork\n");
    // A process that copies files is not a process of the sandbox, and has a lower priority than
    // the agent.
    let of_worker = |file| home.cli(["cp", &format!("{}:/proc/self/{file}", sandbox.id), "-"]).run().succeeds().out();
    assert_eq!(of_worker("cgroup"), "0::/\n");
    let nice = of_worker("stat").rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(16).map(str::to_owned));
    assert_eq!(nice.as_deref(), Some("0"));
    let (put, place) = (home.scratch("put"), format!("{}:/tmp/put", sandbox.id));
    fs::write(&put, "put").expect("a scratch file can be written");
    let _ = home.cli(["cp".as_ref(), put.as_os_str(), place.as_ref()]).run().succeeds();
    assert_eq!(home.cli(["cp", &place, "-"]).run().succeeds().out(), "put");
    end(&home, &sandbox, &pid);

    // A real fork bomb, which writes a byte for each process. The agent responds all the time, and
    // ends it.
    let pid = detach(&sandbox, "b() { echo >&2; b | b & }; b; exec sleep 1000");
    let many = || (kept_bytes(&home, &sandbox, &pid) > 20).then_some(());
    assert!(eventually(SOON, many).is_some(), "the fork bomb did not start");
    end(&home, &sandbox, &pid);

    // The limits belong to the sandbox. A copy of the machine that is created with other limits has
    // those.
    let _ = home.cli(["snapshot", "create", &sandbox.id, "limited"]).run().succeeds();
    sandbox.remove();
    let plain = home.create(&["--from", "limited"]);
    let of_plain = plain.sh("ulimit -n; cat /sys/fs/cgroup/sandbox/pids.max").succeeds();
    assert_eq!(of_plain.out(), "8192\n512\n");
    plain.remove();
    let _ = home.cli(["snapshot", "rm", "limited"]).run().succeeds();
    home.assert_nothing_left();
}

/// Fills the disk, mostly without writing to it: to write 2 GiB takes an hour if the guest's kernel
/// is interpreted.
const GREEDY: &str = "
import os
disk, size, step = os.open('/big', os.O_CREAT | os.O_WRONLY), 0, 1 << 30
while step > 1 << 16:
  try: os.posix_fallocate(disk, size, step); size += step
  except OSError: step //= 2
os.lseek(disk, size, 0)
print('begun', flush=True)
try:
  while 1: os.write(disk, bytes(1 << 16))
except OSError as error: print(error.errno, size > 1 << 30)
os.unlink('/big')
bytes(100 << 30)
";

/// Allocates 100 GiB, which the kernel does not refuse because the program does not reserve them,
/// and writes to all.
const GREEDIER: &str = "
import mmap
mmap.mmap(-1, 100 << 30, 0x4000 | 0x8000 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
";

/// An interpreted kernel takes a minute to run out of memory, mostly because it looks for pages
/// that it can reclaim.
#[test]
#[ignore = "soak: takes minutes on a busy machine; scripts/soak runs it"]
fn an_allocation_without_end_ends_only_its_own_process() {
    let Some(home) = Home::with_kvm() else { return };
    let (neighbour, sandbox) = (home.create(&["-m", SMALL]), home.create(&["-m", SMALL]));
    let host = Host::look(&home);
    let sleeper = detach(&sandbox, "exec sleep 1000");
    let greedy = sandbox.exec(["--", "python3", "-S", "-c", GREEDIER]).deadline(SOON * 3).spawn();
    for _ in 0..3 {
        let _ = neighbour.exec(["--", "true"]).run().succeeds();
    }
    let _ = greedy.finish().exits(137);
    let listed = home.cli(["ps", "-q", &sandbox.id]).run().succeeds().out();
    assert!(listed.lines().any(|line| line == sleeper), "the kernel ended the sleeper: {listed}");
    assert_eq!(sandbox.sh("echo fine").succeeds().out(), "fine\n");
    host.assert_spared(256 << 10, 0);
}

#[test]
fn exhausted_resources_stay_within_their_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    let neighbour = home.create(&["-m", SMALL]);
    let sandbox = home.create(&["-m", SMALL]);
    let host = Host::look(&home);
    let vmm = sandbox.vmm_pid();
    let answers = |while_it: &str| {
        let answered = neighbour.exec(["--", "true"]).run();
        assert_eq!(answered.code(), Some(0), "the other sandbox, while {while_it}: {}", answered.transcript());
    };

    // A write to a full disk is an error in the guest, and so is an allocation of more memory than
    // it has.
    let mut greedy = sandbox.exec(["--", "python3", "-S", "-c", GREEDY]).deadline(SOON).spawn();
    greedy.wait_for_stdout("begun");
    answers("the sandbox fills its disk");
    let greedy = greedy.finish().exits(1);
    assert_eq!(greedy.out(), "begun\n28 True\n");
    assert!(greedy.err().contains("MemoryError"), "{}", greedy.transcript());

    // Output without end: to the console, to a process that no client attaches to, and to a client
    // that does not read.
    let console = detach(&sandbox, "exec yes >/dev/ttyS0");
    let kept = detach(&sandbox, "exec yes");
    let unread = home.cli(["exec", &sandbox.id, "--", "yes"]).spawn_unread();
    let spinning = detach(&sandbox, "while :; do :; done");
    answers("the sandbox writes without end and spins");
    let log = sandbox.directory().join("console.log");
    let log_size = || fs::metadata(&log).expect("a console log").len();
    assert!(eventually(SOON, || (log_size() > 1000).then_some(())).is_some(), "nothing on the console");
    std::thread::sleep(Duration::from_secs(1));
    assert!(log_size() <= SIZE_OF_CONSOLE_LOG, "{} bytes of console log", log_size());
    let resident = memory::resident_kib(vmm).expect("the VMM runs");
    assert!(resident < (128 + 40) << 10, "the VMM uses {resident} KiB");
    for pid in [&console, &kept, &spinning] {
        let _ = home.cli(["kill", &sandbox.id, pid, "-s", "KILL"]).run().succeeds();
    }
    unread.signal(rustix::process::Signal::KILL);
    assert_eq!(unread.finish().signal(), Some(9));
    assert_eq!(sandbox.sh("echo fine").succeeds().out(), "fine\n");
    assert_eq!(processes::threads(vmm), processes::threads(neighbour.vmm_pid()));
    host.assert_spared(256 << 10, 2 << 30);
    sandbox.remove();
    neighbour.remove();
    home.assert_nothing_left();
}

/// Returns the processor time of a process in seconds.
fn processor_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process exists");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in parentheses").1.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number of ticks");
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}

/// Returns the control groups that the sandbox records.
fn control_groups(sandbox: &Sandbox<'_>) -> Vec<PathBuf> {
    let paths = fs::read_to_string(sandbox.directory().join("cgroup")).expect("the sandbox has a control group");
    let groups: Vec<PathBuf> = paths.lines().map(PathBuf::from).collect();
    assert!(groups.iter().all(|group| group.ends_with(format!("sandboxvm-{}", sandbox.id))), "{paths}");
    groups
}

/// Returns the control group with the processor share.
fn control_group(sandbox: &Sandbox<'_>) -> PathBuf {
    control_groups(sandbox).swap_remove(0)
}

/// Asserts that the control groups of a VMM with a processor share limit memory and processes too,
/// if the host has these controllers.
fn assert_bounded(sandbox: &Sandbox<'_>) {
    let memory = (2 * (128 << 20) + (512 << 20)).to_string();
    let settings = [("memory.limit_in_bytes", memory.as_str()), ("memory.max", &memory), ("pids.max", "512")];
    for group in control_groups(sandbox).iter().filter(|group| group.exists()) {
        assert_eq!(processes::in_group(group), [sandbox.vmm_pid()], "{}", group.display());
        for (file, value) in settings {
            // In version 1 the group may be of another controller, which does not have this file.
            if let Ok(found) = fs::read_to_string(group.join(file)) {
                assert_eq!(found.trim(), value, "{}/{file}", group.display());
            }
        }
    }
}

#[test]
fn a_processor_share_is_enforced_and_its_control_group_is_removed_with_the_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    let made = home.cli(["create", "-m", SMALL, "--cpu-share", "40%"]).run().succeeds();
    let sandbox = Sandbox::printed(&home, &made);
    if made.err().contains("processor share of 40% is not enforced") {
        let said = home.cli(["inspect", &sandbox.id]).run().succeeds().json();
        assert!(said[0]["unkept_limits"][0].as_str().is_some_and(|reason| reason.contains("40%")), "{said}");
        eprintln!("left out: this host has no control groups to write to");
        return;
    }
    let group = control_group(&sandbox);
    assert_bounded(&sandbox);
    let groups = control_groups(&sandbox);
    let _ = detach(&sandbox, "while :; do :; done");
    // Measures processor time and elapsed time from the same moment on. A busy host only makes the
    // guest slower.
    let pid = sandbox.vmm_pid();
    let (used, begun) = (processor_time(pid), Instant::now());
    std::thread::sleep(Duration::from_secs(4));
    let (used, passed) = (processor_time(pid) - used, begun.elapsed().as_secs_f64());
    assert!(used < passed * 0.6, "{used} s of processor time in {passed} s");
    assert!(used > passed * 0.01, "{used} s of processor time in {passed} s: the guest hardly ran");

    // A copy has the same share in a separate group.
    let forked = home.cli(["fork", &sandbox.id]).run().succeeds();
    let copy = Sandbox::printed(&home, &forked);
    let copy_group = control_group(&copy);
    assert_ne!(copy_group, group);
    let members = |group: &PathBuf| processes::in_group(group);
    assert_eq!((members(&group), members(&copy_group)), (vec![pid], vec![copy.vmm_pid()]));
    // The group of a killed VMM stays until the sandbox is removed, or continues with the VMM of a
    // reset.
    processes::kill(copy.vmm_pid());
    assert!(eventually(SOON, || members(&copy_group).is_empty().then_some(())).is_some());
    let _ = home.cli(["prune"]).run().succeeds();
    assert!(!copy_group.exists(), "{} is left", copy_group.display());
    processes::kill(pid);
    let dead = || (home.row(&sandbox.id)["state"] == "dead").then_some(());
    assert!(eventually(SOON, dead).is_some());
    let _ = home.cli(["reset", &sandbox.id]).run().succeeds();
    assert_eq!(members(&group), [sandbox.vmm_pid()]);
    sandbox.remove();
    assert!(!groups.iter().any(|group| group.exists()), "one of {groups:?} is left");
    // The group of a `run` is removed too, however it ends.
    let run = home.cli(["run", "-m", SMALL, "--cpu-share", "90%", "--", "echo", "ran"]).run().succeeds();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("ran\n", ""));
    let parent = group.parent().expect("the group of a sandbox is in another one");
    let of_ours = fs::read_dir(parent).expect("a directory").flatten().map(|entry| entry.path());
    let left: Vec<PathBuf> = of_ours.filter(|path| path.join("cgroup.procs").exists()).collect();
    assert!(!left.iter().any(|path| path.display().to_string().contains(&sandbox.id)), "{left:?}");
    home.assert_nothing_left();
}

/// Only lower bounds of time are asserted, which hold on a busy host too.
#[test]
fn the_output_rate_limits_a_sandbox_and_its_copy() {
    const BYTES: usize = 1 << 20;
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--output-rate", "256K"]);
    let said = home.cli(["inspect", &sandbox.id]).run().succeeds().json();
    assert_eq!(said[0]["limits"]["output_rate"], 256 << 10, "{said}");
    let _ = sandbox.sh(&format!("head -c {BYTES} /dev/zero > /big")).succeeds();
    let forked = home.cli(["fork", &sandbox.id]).run().succeeds();
    for sandbox in [&sandbox, &Sandbox::printed(&home, &forked)] {
        let begun = Instant::now();
        let copied = home.cli(["cp", &format!("{}:/big", sandbox.id), "-"]).run().succeeds();
        let took = begun.elapsed();
        assert!(copied.out().len() == BYTES && copied.out().bytes().all(|byte| byte == 0));
        // Without the quarter of a second that is sent immediately.
        assert!(took > Duration::from_millis(3600), "{BYTES} bytes took {took:?}");
        // The rate does not apply to input, and small output passes.
        assert_eq!(sandbox.sh("echo still here").succeeds().out(), "still here\n");
    }
    let _ = home.cli(["create", "--output-rate", "1K"]).run().fails_with(&["between 256 KiB and 64 GiB"]);
    let _ = home.cli(["rm", "-f", forked.out().trim()]).run().succeeds();
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn what_the_host_has_no_room_for_is_refused_before_anything_is_created() {
    let Some(home) = Home::with_kvm() else { return };
    let one = home.create(&["-m", SMALL]);
    let refused = |variable: &str, value: &str, hints: &[&str]| {
        let made = home.cli(["create", "-m", SMALL, "--name", "more"]).env(variable, value).run();
        let _ = made.fails_with(&[hints, &[variable]].concat());
        assert_eq!(home.listed(), [one.id.as_str()]);
    };
    refused("SANDBOXVM_MAX_SANDBOXES", "1", &["cannot create 1 more sandboxes: this home has 1 of at most 1"]);
    refused("SANDBOXVM_OVERCOMMIT", "0.01", &["128 MiB of memory: running sandboxes have 128 MiB"]);
    refused("SANDBOXVM_MIN_FREE_MEMORY", "1000G", &["of which 1024000 MiB must stay free"]);
    refused("SANDBOXVM_MIN_FREE_DISK", "100T", &["2048 MiB of disk", "must stay free"]);
    refused("SANDBOXVM_OVERCOMMIT", "much", &["a factor"]);
    let forked = home.cli(["fork", &one.id, "-n", "3"]).env("SANDBOXVM_MAX_SANDBOXES", "3").run();
    let _ = forked.fails_with(&["cannot create 3 more sandboxes: this home has 1 of at most 3"]);
    assert_eq!(home.listed(), [one.id.as_str()]);
    // A stopped sandbox has no memory, but counts as a sandbox. The removal of one makes room for
    // another.
    let _ = home.cli(["stop", &one.id]).run().succeeds();
    let run = || home.cli(["run", "-m", SMALL, "--", "echo", "ran"]);
    let _ = run().env("SANDBOXVM_MAX_SANDBOXES", "1").run().fails_with(&["SANDBOXVM_MAX_SANDBOXES"]);
    assert_eq!(run().env("SANDBOXVM_MAX_SANDBOXES", "2").run().succeeds().out(), "ran\n");
    one.remove();
    assert_eq!(run().env("SANDBOXVM_MAX_SANDBOXES", "1").run().succeeds().out(), "ran\n");
    home.assert_nothing_left();
}

/// Only lower bounds of time are asserted, which hold on a busy host too.
#[test]
fn disk_rates_hold_after_a_fork_and_a_reset_too() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--disk-rate", "1M", "--disk-ops", "20"]);
    let said = home.cli(["inspect", &sandbox.id]).run().succeeds().json();
    assert_eq!(said[0]["limits"]["disk_rate"], 1 << 20, "{said}");
    assert_eq!(said[0]["limits"]["disk_operations"], 20, "{said}");
    let read = |sandbox: &Sandbox<'_>, block: &str, count: u32| {
        let begun = Instant::now();
        let command = format!("dd if=/dev/vdc of=/dev/null iflag=direct bs={block} count={count} 2>/dev/null");
        let _ = sandbox.sh(&command).succeeds();
        begun.elapsed()
    };
    let is_held = |sandbox: &Sandbox<'_>| {
        // Without the quarter of a second that is served immediately, and the last request.
        let took = read(sandbox, "256K", 20);
        assert!(took > Duration::from_millis(4400), "5 MiB took {took:?}");
        let took = read(sandbox, "4K", 80);
        assert!(took > Duration::from_millis(3600), "80 reads took {took:?}");
    };
    is_held(&sandbox);
    let forked = home.cli(["fork", &sandbox.id]).run().succeeds();
    is_held(&Sandbox::printed(&home, &forked));
    let _ = home.cli(["rm", "-f", forked.out().trim()]).run().succeeds();
    let _ = home.cli(["reset", &sandbox.id]).run().succeeds();
    is_held(&sandbox);
    let _ = home.cli(["create", "--disk-rate", "1K"]).run().fails_with(&["between 256 KiB and 64 GiB"]);
    let _ = home.cli(["create", "--disk-ops", "1"]).run().fails_with(&["between 10 and 10000000"]);
    sandbox.remove();
    home.assert_nothing_left();
}
