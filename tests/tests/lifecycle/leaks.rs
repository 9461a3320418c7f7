//! Many sandboxes are created, used and removed, several at the same time: nothing of them is left.
//! A long-lived sandbox does not grow.

use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    host::{leaks, processes},
};
use std::time::Duration;

/// Returns the host's mounts and the names in its temporary directories, to compare them later.
fn surroundings() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let mut seen: Vec<String> = mounts.lines().map(str::to_owned).collect();
    for directory in ["/tmp", "/run", "/dev/shm", "/var/tmp"] {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        // Excludes directories of tests that run at the same time.
        let names = entries.map(|entry| entry.path().display().to_string());
        seen.extend(names.filter(|name| name.contains("sandboxvm") && !name.contains("sandboxvm-test-")));
    }
    seen.sort();
    seen
}

fn leave_nothing(at_a_time: usize, rounds: usize) {
    let Some(home) = Home::with_kvm() else { return };
    let before = surroundings();
    std::thread::scope(|scope| {
        for lane in 0..at_a_time {
            let home = &home;
            scope.spawn(move || {
                for round in 0..rounds {
                    let name = format!("lane-{lane}");
                    let sandbox = home.create(&["-m", SMALL, "--name", &name]);
                    let run = sandbox.sh(&format!("echo {lane} {round} | tee /root/f; sleep 100 & exit 0")).succeeds();
                    assert_eq!(run.out(), format!("{lane} {round}\n"));
                    assert!(home.listed().contains(&sandbox.id));
                    let _ = home.cli(["rm", "-f", &name]).run().succeeds();
                }
            });
        }
    });
    assert!(home.listed().is_empty());
    home.assert_nothing_left();
    assert_eq!(surroundings(), before);
}

#[test]
fn three_sandboxes_at_a_time_leave_nothing() {
    leave_nothing(3, 2);
}

#[test]
#[ignore = "soak: ten rounds of five"]
fn fifty_sandboxes_five_at_a_time_leave_nothing() {
    leave_nothing(5, 10);
}

/// The leak check reports a sandbox that exists. Otherwise it would prove nothing.
#[test]
fn the_leak_check_finds_an_existing_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let left = leaks::what_is_left(&home.path());
    for kind in ["process ", "file ", "socket "] {
        assert!(left.iter().any(|line| line.starts_with(kind)), "no {kind}in {left:#?}");
    }
    sandbox.remove();
    home.assert_nothing_left();
}

/// What a machine uses, on the host and in the guest. The connection of the last exec may still be
/// open: the caller gets the exit code before it is closed.
#[derive(Debug, PartialEq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    /// The number of the agent's descriptors, of its threads, and of the guest's processes.
    guest: String,
}

impl Holdings {
    fn of(sandbox: &Sandbox<'_>, vmm: u32) -> Self {
        let script = "ls /proc/1/fd | wc -l; ls /proc/1/task | wc -l; ps -e --no-headers | grep -vc kworker";
        let guest = sandbox.sh(script).succeeds().out();
        // The minimum of several samples: whatever is above it is about to end.
        let samples = (0..20).map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            (processes::descriptors(vmm).len(), processes::threads(vmm))
        });
        let (descriptors, threads) = samples.min().expect("twenty samples");
        Self { descriptors, threads, guest }
    }
}

#[test]
fn a_long_lived_sandbox_does_not_grow() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let vmm = sandbox.vmm_pid();
    let _ = sandbox.sh("true").succeeds();
    let before = Holdings::of(&sandbox, vmm);
    for kind in 0..4 {
        match kind {
            0 => drop(sandbox.sh("exit 3")),
            1 => drop(sandbox.exec(["-i", "--", "cat"]).input("some input").run().succeeds()),
            2 => drop(sandbox.exec(["--", "no-such-program"]).run().exits(127)),
            _ => {
                let mut run = sandbox.spawn_sh("echo up; sleep 600");
                run.wait_for_stdout("up\n");
                run.signal(rustix::process::Signal::KILL);
                drop(run.finish());
            }
        }
    }
    let mut after = None;
    // The agent reaps the processes of a killed command a moment later.
    let same = eventually(Duration::from_secs(60), || {
        let now = Holdings::of(&sandbox, vmm);
        let same = now == before;
        after = Some(now);
        same.then_some(())
    });
    assert!(same.is_some(), "the sandbox grew from {before:?} to {after:?}: {:#?}", processes::descriptors(vmm));
}
