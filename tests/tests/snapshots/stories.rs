//! Snapshots, forks and resets, as their users see them: files and memory are restored, and copies
//! share nothing.

use sandboxvm_tests::{
    cli::Finished,
    home::{Home, SMALL, Sandbox, eventually},
    host::processes,
};
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Counts, and writes each number to a file in memory twice a second. It reads the file only when
/// it starts. It uses only the shell and no disk, because four such guests must leave one processor
/// of a busy host idle.
const COUNTER: &str = "mkfifo /root/never; exec 3<>/root/never
n=0
while :; do n=$((n+1)); echo $n > /dev/shm/n; read -t 0.5 -u 3; done";

/// Reads the counter's number into $n. The file may be incomplete when it is read, so this repeats.
const READ_NUMBER: &str = "until read n < /dev/shm/n && [ -n \"$n\" ]; do :; done";

/// Starts the counter, which outlives its exec, and waits until it counts. Returns its number.
fn start_counter(sandbox: &Sandbox<'_>) -> u64 {
    let script = format!("setsid bash -c \"$0\" >/dev/null 2>&1 </dev/null & {READ_NUMBER} 2>/dev/null; echo $n");
    number(&sandbox.exec(["--", "sh", "-c", &script, COUNTER]).run().succeeds())
}

fn number(run: &Finished) -> u64 {
    run.out().lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{}", run.transcript()))
}

/// A process keeps counting in its sandbox and in two copies, each from the number it had, and no
/// copy sees the files of another.
#[test]
fn forks_continue_from_one_state_and_share_nothing_afterwards() {
    let Some(home) = Home::with_kvm() else { return };
    let parent = home.create(&["-m", SMALL, "--name", "parent"]);
    let before = start_counter(&parent);
    let forked = home.cli(["fork", "parent", "-n", "2"]).deadline(Duration::from_secs(240)).run().succeeds();
    let ids: Vec<String> = forked.out().lines().map(str::to_owned).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 2, "{}", forked.transcript());
    let mut all: Vec<Sandbox<'_>> = ids.iter().map(|id| Sandbox::called(&home, id)).collect();
    all.push(parent.clone());

    for sandbox in &all {
        assert_eq!(home.row(&sandbox.id)["state"], "running");
        let script = "; echo $n; read h < /proc/sys/kernel/hostname; echo $h; echo $0 > /root/own";
        let run = sandbox.exec(["--", "sh", "-c", &format!("{READ_NUMBER}{script}"), &sandbox.id]).run().succeeds();
        assert!(number(&run) >= before, "the counter started again: {}", run.transcript());
        let name = if sandbox.id == parent.id { "parent" } else { &sandbox.id };
        assert!(run.out().ends_with(&format!("\n{name}\n")), "{}", run.transcript());
    }
    for sandbox in &all {
        // Ends when the number has grown. A counter that stands still reaches the deadline.
        let grows = format!("{READ_NUMBER}; was=$n; while [ $n -le $was ]; do {READ_NUMBER}; done; cat /root/own");
        let run = sandbox.exec(["--timeout", "60s", "--", "sh", "-c", &grows]).run().succeeds();
        assert_eq!(run.out(), format!("{}\n", sandbox.id), "the sandbox has a file of another one");
    }
    // A copy of a copy is a sandbox like any other.
    let again = home.cli(["fork", &ids[0]]).deadline(Duration::from_secs(240)).run().succeeds();
    let grandchild = Sandbox::called(&home, again.out().trim());
    assert_eq!(grandchild.sh("cat /root/own").succeeds().out(), format!("{}\n", ids[0]));
    let _ = home.cli(["reset", &ids[0]]).run().fails_with(&["fork", "snapshot"]);
    // A sandbox can be removed in any order without harm to the others.
    parent.remove();
    assert_eq!(all[1].sh("cat /root/own").succeeds().out(), format!("{}\n", ids[1]));
    let _ = home.cli(["rm", "-f", &ids[0], &ids[1], &grandchild.id]).run().succeeds();
    home.assert_nothing_left();
}

/// Takes a chain of snapshots with writes in between. Each, restored in any order, has its own
/// files and memory, and no later ones.
fn chain(depth: usize) {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "chain"]);
    // Writes to the disk and to memory only (/dev/shm), with different content.
    let write =
        |n: usize| format!("for d in /root /dev/shm; do seq -f $d-{n}-%g 5000 > $d/f{n}; done; echo {n} > /root/last");
    let sums = "cat /root/last; sha256sum /root/f* /dev/shm/f*";
    let mut expected = Vec::new();
    for n in 0..depth {
        let run = sandbox.sh(&format!("{}; {sums}", write(n))).succeeds();
        assert_eq!(run.out().lines().count(), 1 + 2 * (n + 1), "{}", run.transcript());
        expected.push(run.out());
        home.snapshot("chain", &format!("s{n}"));
    }
    sandbox.remove();
    // A snapshot is complete without those before it.
    let _ = home.cli(["snapshot", "rm", "s0"]).run().succeeds();
    for n in (1..depth).rev() {
        let restored = home.create(&["--from", &format!("s{n}")]);
        let run = restored.sh(sums).succeeds();
        assert!(run.out() == expected[n], "snapshot {n}: expected\n{}{}", expected[n], run.transcript());
        restored.remove();
    }
    home.remove_snapshots();
    let _ = home.cli(["prune"]).run().succeeds();
    home.assert_nothing_left();
}

#[test]
fn each_snapshot_of_a_chain_restores_its_own_state() {
    chain(3);
}

#[test]
#[ignore = "soak: thirty deep"]
fn each_snapshot_of_a_long_chain_restores_its_own_state() {
    chain(30);
}

/// Runs in the machine that is cloned, and returns random values of Python whenever it is asked
/// through its pipe. It continues in every clone, with everything that was in its memory.
const PYTHON: &str = "import os, secrets, uuid
print(file=open('/root/ready', 'w'))
while 1:
  open('/root/ask').read()
  with open('/root/said', 'w') as said:
    print(secrets.token_hex(16), uuid.uuid4(), os.urandom(16).hex(), sep='\\n', file=said)";
/// Starts the program, and ends when it is ready. (To start Python in each clone would take half a
/// minute if the guest's kernel is interpreted.)
const START_PYTHON: &str = r#"mkfifo /root/ready /root/ask /root/said
    setsid python3 -c "$0" >/dev/null 2>&1 </dev/null &
    read -r < /root/ready"#;
/// Answers questions for the time until its stdin ends. Then it prints what must differ between
/// machines: the uptime, a UUID of the kernel, the hostname, the machine-id, random bytes (the
/// shell drops zeros), and Python's values. It uses only the shell, which costs a guest less than
/// other programs.
const WHO_ARE_YOU: &str = r#"while read -r question; do echo "$question $EPOCHREALTIME"; done
    read -r uptime _ < /proc/uptime; echo $uptime
    read -r uuid < /proc/sys/kernel/random/uuid; echo $uuid
    read -r name < /proc/sys/kernel/hostname; echo $name
    read -r id < /etc/machine-id; echo $id
    LC_ALL=C; read -r -N 24 bytes < /dev/urandom; printf '%q\n' "$bytes"
    echo > /root/ask; while read -r value; do echo $value; done < /root/said"#;
/// Number of lines of an answer: the uptime, then values that no two machines may share.
const SAID: usize = 8;
/// Maximum error of a guest's clock in seconds.
const CLOCK_ERROR: f64 = 0.05;
const QUESTIONS: usize = 3;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// Returns what a machine prints about itself, its uptime first.
fn ask_who(machine: &Sandbox<'_>) -> Vec<String> {
    let mut run = machine.exec(["-i", "--", "bash", "-c", WHO_ARE_YOU]).open_stdin().spawn();
    let asked_and_answered: Vec<(f64, f64)> = (0..QUESTIONS)
        .map(|n| {
            let asked = now();
            run.write(format!("q{n}\n").as_bytes());
            run.wait_for_stdout(&format!("q{n} "));
            (asked, now())
        })
        .collect();
    let run = run.finish().succeeds();
    let mut lines: Vec<String> = run.out().lines().map(str::to_owned).collect();
    for ((asked, answered), line) in asked_and_answered.into_iter().zip(lines.drain(..QUESTIONS)) {
        let time: f64 = line.split_once(' ').and_then(|(_, time)| time.parse().ok()).expect("seconds");
        assert!(
            (asked - CLOCK_ERROR..answered + CLOCK_ERROR).contains(&time),
            "asked at {asked}, answered at {answered}: the guest's time is {time}"
        );
        println!(
            "answered within {:.4} s, {:.4} s after it was asked by its own clock",
            answered - asked,
            time - asked
        );
    }
    assert_eq!(lines.len(), SAID, "{}", run.transcript());
    assert_eq!(lines[2], machine.id, "its hostname");
    lines
}

/// Makes the snapshot `one` while a process sleeps and another waits for it. Returns the sandbox's
/// uptime before.
fn snapshot_of_a_sleeper(home: &Home, sandbox: &Sandbox<'_>) -> f64 {
    // On a busy machine three seconds may be over before the snapshot is complete. Then the test
    // tries again.
    for seconds in [3, 12, 48] {
        let sleeper = format!("sleep {seconds} & echo $! > /dev/shm/pid; wait $!; echo $? > /dev/shm/slept");
        let script = "rm -f /dev/shm/*; setsid sh -c \"$0\" >/dev/null 2>&1 </dev/null &
            sleeps() { read p < /dev/shm/pid && read _ name state _ < /proc/$p/stat && [ $name$state = '(sleep)S' ]; }
            until sleeps 2>/dev/null; do [ ! -s /dev/shm/slept ] || { echo over; break; }; done
            read up _ < /proc/uptime; echo begun $up; wait; echo over";
        let mut run = sandbox.exec(["--", "sh", "-c", script, &sleeper]).spawn();
        run.wait_for_stdout("begun ");
        home.snapshot(&sandbox.id, "one");
        let said = String::from_utf8(run.stdout_so_far()).expect("ASCII");
        // The sleeper of the original is not disturbed either.
        let _ = run.finish().succeeds();
        if !said.contains("over") {
            return said.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("an uptime");
        }
        home.remove_snapshots();
    }
    panic!("a snapshot takes longer than 48 s");
}

/// Clones of one snapshot share no value that must be unique, neither with each other nor with the
/// original, and their clocks are right. A process that slept in the original wakes in them, and
/// their monotonic clocks continue.
fn clones(count: usize, at_a_time: usize) {
    let Some(home) = Home::with_kvm() else { return };
    let original = home.create(&["-m", SMALL]);
    let _ = original.exec(["--", "bash", "-c", START_PYTHON, PYTHON]).run().succeeds();
    let mut originals = ask_who(&original);
    originals.remove(0);
    let begun = Instant::now();
    let uptime = snapshot_of_a_sleeper(&home, &original);
    let lanes = at_a_time.min(count);
    let mut answers: Vec<Vec<String>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..lanes)
            .map(|lane| {
                let home = &home;
                scope.spawn(move || {
                    let numbers = (lane..count).step_by(lanes);
                    let clones = numbers.map(|number| {
                        let clone = home.create(&["--from", "one"]);
                        let mut lines = ask_who(&clone);
                        let its: f64 = lines.remove(0).parse().expect("an uptime");
                        let latest = uptime + begun.elapsed().as_secs_f64() + 1.0;
                        assert!(
                            (uptime..latest).contains(&its),
                            "the uptime was {uptime}, is {its}, and may be at most {latest}"
                        );
                        if number == 0 {
                            let wakes =
                                "until read status < /dev/shm/slept; do sleep 0.2; done 2>/dev/null; echo $status";
                            assert_eq!(clone.sh(wakes).succeeds().out(), "0\n", "the sleeper did not end at its time");
                        }
                        clone.remove();
                        lines
                    });
                    clones.collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    answers.push(originals);
    assert_eq!(answers.len(), count + 1);
    for column in 0..SAID - 1 {
        let distinct: HashSet<&String> = answers.iter().map(|lines| &lines[column]).collect();
        assert_eq!(distinct.len(), answers.len(), "two machines have the same line {column}: {answers:#?}");
    }
    original.remove();
    home.remove_snapshots();
    home.assert_nothing_left();
}

#[test]
fn clones_of_a_snapshot_are_distinct() {
    clones(6, 2);
}

#[test]
#[ignore = "soak: 200 clones, ten at a time"]
fn two_hundred_clones_of_a_snapshot_are_distinct() {
    clones(200, 10);
}

/// A sandbox whose files were removed has them again after a reset: to its beginning, to a
/// snapshot, and after its machine has ended. To remove all files takes minutes if the guest's
/// kernel is interpreted, and the first ones are enough to break it.
#[test]
fn a_reset_restores_a_sandbox_whose_files_were_removed() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "wiped"]);
    wiped_and_reset(&home, &sandbox, |sandbox| {
        // The shell first: so that it is gone, however little the guest runs until the timeout.
        let files = ["-rf", "--no-preserve-root", "/usr/bin/dash", "/"];
        let wipe = sandbox.exec(["--timeout", "10s", "--", "rm"]).args(files);
        let wiped = wipe.deadline(Duration::from_secs(600)).run();
        // A fast guest finishes before the timeout, and fails because mounts cannot be removed.
        assert!([Some(124), Some(1)].contains(&wiped.code()), "{}", wiped.transcript());
    });
}

/// Removes all files. Two mounts with ten thousand names that cannot be removed are unmounted
/// before.
const WIPE: &str = "for (my @mounts = ('/sys', '/proc')) { syscall(166, $_, 2) == 0 or die \"umount $_: $!\" }
    exec qw(rm -rf --no-preserve-root /)";

#[test]
#[ignore = "soak: removes all files"]
fn a_reset_restores_a_sandbox_without_any_file() {
    let Some(home) = Home::with_kvm() else { return };
    let image = small_image(&home);
    let image = image.to_str().expect("the path is UTF-8");
    let sandbox = home.create(&["-m", SMALL, "--name", "wiped", "--image", image]);
    wiped_and_reset(&home, &sandbox, |sandbox| {
        let wiped = sandbox.exec(["--", "perl", "-e", WIPE]).deadline(Duration::from_secs(600)).run().exits(1);
        // Only mounts, and terminals in one of them, cannot be removed. All other files are gone.
        let kept = |line: &str| line.ends_with("Device or resource busy") || line.contains("'/dev/pts");
        assert!(wiped.err().lines().all(kept), "{}", wiped.transcript());
    });
}

/// Builds a base image with a shell, the programs that remove and list files, and a few hundred
/// files. To remove one of the seven thousand files of the real base image costs an interpreted
/// kernel a tenth of a second.
fn small_image(home: &Home) -> PathBuf {
    let (tree, image) = (home.scratch("tree"), home.scratch("small.erofs"));
    let make = |program: &str, arguments: &[&Path]| {
        let made = Command::new(program).args(arguments).output().expect("erofs-utils are installed");
        assert!(made.status.success(), "{program} {arguments:?}: {made:?}");
    };
    let extract = format!("--extract={}", tree.display());
    make("fsck.erofs", &[Path::new(&extract), &home.artefacts().part("base.erofs")]);
    let keep = |directory: &str, kept: &dyn Fn(&str) -> bool| {
        for entry in fs::read_dir(tree.join(directory)).expect("the base image has the directory") {
            let entry = entry.expect("the directory can be read");
            if !kept(entry.file_name().to_str().expect("ASCII")) {
                let is_directory = entry.file_type().expect("the entry has a type").is_dir();
                let remove = if is_directory { fs::remove_dir_all } else { fs::remove_file };
                remove(&entry.path()).expect("the test may remove the file");
            }
        }
    };
    let libraries = ["ld-linux", "libc.so", "libcrypt.so", "libm.so", "libpcre2-8", "libselinux"];
    keep("usr", &|name| ["bin", "lib", "lib64"].contains(&name));
    keep("usr/bin", &|name| ["cat", "dash", "hostname", "ls", "perl", "rm", "sh"].contains(&name));
    keep("usr/lib", &|name| ["locale", "x86_64-linux-gnu"].contains(&name));
    keep("usr/lib/x86_64-linux-gnu", &|name| libraries.iter().any(|library| name.starts_with(library)));
    keep("etc", &|name| name != "ssl");
    keep("var", &|_| false);
    make("mkfs.erofs", &[&image, &tree]);
    image
}

/// Removes the files of a new sandbox and resets it.
fn wiped_and_reset(home: &Home, sandbox: &Sandbox<'_>, wipe: impl Fn(&Sandbox<'_>)) {
    let _ = sandbox.sh("echo precious > /root/file; echo here > /dev/shm/memory").succeeds();
    home.snapshot("wiped", "before");
    let vmm = sandbox.vmm_pid();
    wipe(sandbox);
    let _ = sandbox.exec(["--", "/bin/sh", "-c", "true"]).run().exits(127);

    let _ = home.cli(["reset", "wiped"]).run().succeeds();
    assert_eq!(sandbox.vmm_pid(), vmm, "the reset replaced the VMM");
    let run = sandbox.sh("ls -A /root; test -e /bin/ls && hostname").succeeds();
    assert!(!run.out().lines().any(|name| name == "file") && run.out().ends_with("wiped\n"), "{}", run.transcript());

    // A reset to a snapshot from which the sandbox was not created starts another machine in its
    // place.
    let _ = home.cli(["reset", "wiped", "before"]).run().succeeds();
    assert_eq!(sandbox.sh("cat /root/file /dev/shm/memory").succeeds().out(), "precious\nhere\n");
    let vmm = sandbox.vmm_pid();
    // That snapshot is now the beginning of the sandbox, and a reset happens in place again.
    let _ = sandbox.sh("rm /root/file /dev/shm/memory").succeeds();
    let _ = home.cli(["reset", "wiped"]).run().succeeds();
    assert_eq!(sandbox.vmm_pid(), vmm, "the reset replaced the VMM");
    assert_eq!(sandbox.sh("cat /root/file /dev/shm/memory").succeeds().out(), "precious\nhere\n");

    // A reset also works without a VMM, and after the snapshot was removed.
    let _ = home.cli(["snapshot", "rm", "before"]).run().succeeds();
    processes::kill(vmm);
    let dead = eventually(Duration::from_secs(60), || (home.row(&sandbox.id)["state"] == "dead").then_some(()));
    assert!(dead.is_some(), "{}", home.row(&sandbox.id));
    let _ = home.cli(["reset", "wiped"]).run().succeeds();
    assert_eq!(sandbox.sh("cat /root/file /dev/shm/memory").succeeds().out(), "precious\nhere\n");
    let _ = home.cli(["reset", "wiped", "before"]).run().fails_with(&["no snapshot", "before"]);
    sandbox.remove();
    home.assert_nothing_left();
}

/// Snapshots of a sandbox before and after a reset, a fork and a failed snapshot have its files at
/// that moment.
#[test]
fn a_snapshot_after_a_reset_has_no_earlier_files() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "turned"]);
    let _ = sandbox.sh("echo old > /root/old").succeeds();
    home.snapshot("turned", "old");
    let _ = home.cli(["snapshot", "create", "turned", "old"]).run().fails_with(&["old", "already"]);
    let _ = home.cli(["reset", "turned"]).run().succeeds();
    let _ = sandbox.sh("echo new > /root/new").succeeds();
    home.snapshot("turned", "new");
    let _ = home.cli(["pause", "turned"]).run().succeeds();
    home.snapshot("turned", "paused");
    assert_eq!(home.row(&sandbox.id)["state"], "paused");
    sandbox.remove();
    for (name, files) in [("old", "old\n"), ("new", "new\n"), ("paused", "new\n")] {
        let restored = home.create(&["--from", name]);
        assert_eq!(restored.sh("ls /root").succeeds().out(), files, "{name}");
        restored.remove();
    }
    let rows = home.cli(["snapshot", "ls", "--json"]).run().succeeds().json();
    let names: Vec<&str> = rows.as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["old", "new", "paused"]);
    home.remove_snapshots();
    home.assert_nothing_left();
}

#[test]
fn flags_that_contradict_a_snapshot_are_refused() {
    let Some(home) = Home::with_kvm() else { return };
    for flags in [&["--memory", "1G"][..], &["--cpus", "2"], &["--disk", "1G"], &["--image", "/x"], &["--cold"]] {
        let _ = home.cli(["create", "--from", "x"]).args(flags).run().fails_with(&["--from"]);
    }
    let _ = home.cli(["create", "--from", "nothing"]).run().fails_with(&["no snapshot", "nothing"]);
    let _ = home.cli(["run", "--from", "nothing", "--", "true"]).run().fails_with(&["no snapshot", "nothing"]);
    let _ = home.cli(["snapshot", "rm", "nothing", "../../etc"]).run().exits(125);
    let _ = home.cli(["fork", "nothing"]).run().fails_with(&["no sandbox"]);
    home.assert_nothing_left();
}

/// A snapshot does not disturb the processes of the sandbox. Their output before, during and after
/// it arrives, each line once and in order. (The benchmark measures how long the machine stands
/// still.)
#[test]
fn a_sandbox_keeps_running_while_its_snapshot_is_written() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "busy"]);
    let tick = "mkfifo /root/never; exec 3<>/root/never; i=0
        while :; do i=$((i+1)); echo $i; read -t 0.1 -u 3; done";
    let mut ticking = sandbox.exec(["--", "bash", "-c", tick]).spawn();
    ticking.wait_for_stdout("\n3\n");
    for name in ["first", "second"] {
        home.snapshot("busy", name);
        let seen = ticking.stdout_so_far().iter().filter(|byte| **byte == b'\n').count();
        ticking.wait_for_stdout(&format!("\n{}\n", seen + 3));
    }
    ticking.signal(rustix::process::Signal::INT);
    let run = ticking.finish();
    for (line, expected) in run.out().lines().zip(1..) {
        assert_eq!(line, expected.to_string(), "{}", run.transcript());
    }
    sandbox.remove();
    home.remove_snapshots();
    home.assert_nothing_left();
}
