//! What copies of a machine do not share: their random numbers, from the first one on, and their
//! names.

use sandboxvm_tests::home::{Home, SMALL, Sandbox, eventually};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// Draws random numbers without end through one of the kernel's interfaces. It logs each number,
/// and whether this machine was a copy before the number was drawn. A copy stands still while it is
/// created. So its boot time is ahead of its monotonic time by more than before, from its first
/// instruction on.
const DRAW: &str = "import os, sys, time
def ahead():
    while True:
        a, b, c = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.monotonic_ns()
        if c - a < 1000000: return b - a
way, path = sys.argv[1:]
urandom = open('/dev/urandom', 'rb', buffering=0)
draw = {'short': lambda: os.getrandom(16), 'long': lambda: os.getrandom(80)[-16:], 'file': lambda: urandom.read(16)}[way]
out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
before = ahead()
while True:
    copied = ahead() - before > 3000000
    os.write(out, b'%s %d\\n' % (draw().hex().encode(), copied))";

const WAYS: [&str; 3] = ["short", "long", "file"];

/// Waits until the generation file is written, once.
const WATCH: &str = "import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
assert libc.inotify_add_watch(fd, b'/run/sandboxvm/generation', 2) > 0
open('/dev/shm/watches', 'w').close()
os.read(fd, 4096)
open('/dev/shm/event', 'w').write(open('/run/sandboxvm/generation').read())";

fn start(sandbox: &Sandbox<'_>) {
    let script = "for way in short long file; do
            setsid python3 -S -c \"$0\" $way /dev/shm/$way >/dev/null 2>&1 </dev/null &
            echo $! >>/dev/shm/drawers
        done
        setsid python3 -S -c \"$1\" >/dev/null 2>&1 </dev/null &
        for file in short long file; do until [ -s /dev/shm/$file ]; do sleep 0.1; done; done
        until [ -e /dev/shm/watches ]; do sleep 0.1; done";
    let _ = sandbox.exec(["--", "sh", "-c", script, DRAW, WATCH]).run().succeeds();
}

/// Ends the processes that draw numbers. They would slow all other processes of the guest down.
fn stop_drawing(sandbox: &Sandbox<'_>) {
    let _ = sandbox.sh("kill $(cat /dev/shm/drawers)").succeeds();
}

fn generation(sandbox: &Sandbox<'_>) -> String {
    sandbox.sh("cat /run/sandboxvm/generation").succeeds().out()
}

/// Returns the numbers that were drawn after the machine became a copy, by interface. Waits until
/// each has some.
fn drawn_since_copied(sandbox: &Sandbox<'_>) -> HashMap<&'static str, Vec<String>> {
    let mut drawn = HashMap::new();
    for way in WAYS {
        let numbers = eventually(Duration::from_secs(60), || {
            let out = sandbox.sh(&format!("grep ' 1$' /dev/shm/{way} | head -n 200; true")).succeeds().out();
            let numbers: Vec<String> = out.lines().map(|line| line.trim_end_matches(" 1").to_owned()).collect();
            (numbers.len() > 20).then_some(numbers)
        });
        drawn.insert(way, numbers.unwrap_or_else(|| panic!("{} draws nothing by {way}", sandbox.id)));
    }
    drawn
}

/// Four copies of a machine whose processes draw random numbers all the time never draw the same
/// number, and neither do programs that start in the copies.
#[test]
#[ignore = "soak: four busy guests on two processors take many minutes where their kernels are interpreted"]
fn forks_draw_no_random_number_twice() {
    let Some(home) = Home::with_kvm() else { return };
    let parent = home.create(&["-m", SMALL]);
    start(&parent);
    let generations_before = generation(&parent);
    let forked = home.cli(["fork", &parent.id, "-n", "4"]).deadline(Duration::from_secs(240)).run().succeeds();
    let forks: Vec<Sandbox<'_>> = forked.out().lines().map(|id| Sandbox::called(&home, id)).collect();
    assert_eq!(forks.len(), 4);
    stop_drawing(&parent);

    let mut seen = HashSet::new();
    let mut generations = HashSet::from([generations_before.clone()]);
    for fork in &forks {
        for (way, numbers) in drawn_since_copied(fork) {
            for (at, number) in numbers.into_iter().enumerate() {
                assert!(seen.insert(number.clone()), "number {at} by {way} was drawn before: {number}");
            }
        }
        stop_drawing(fork);
    }
    for fork in &forks {
        let fresh = "cat /proc/sys/kernel/random/uuid; python3 -S -c 'import secrets, ssl
print(secrets.token_hex(16)); print(ssl.RAND_bytes(16).hex())'";
        let fresh = fork.sh(fresh).succeeds().out();
        assert_eq!(fresh.lines().count(), 3, "{fresh}");
        for number in fresh.lines() {
            assert!(
                seen.insert(number.to_owned()),
                "a program that just started drew {number}, which was drawn before"
            );
        }
        let new = generation(fork);
        assert_eq!(new.len(), 33, "{new:?}");
        assert!(generations.insert(new.clone()), "two machines have the generation {new}");
        let event = "until [ -s /dev/shm/event ]; do sleep 0.1; done; cat /dev/shm/event";
        assert_eq!(fork.sh(event).succeeds().out(), new, "the watching process read another generation");
    }
    assert_eq!(generation(&parent), generations_before, "the parent is not a copy");
    for sandbox in forks.iter().chain([&parent]) {
        sandbox.remove();
    }
    home.assert_nothing_left();
}

/// A sandbox resolves its own name, however the sandbox was created, and other lines of
/// `/etc/hosts` stay.
#[test]
fn every_machine_resolves_its_own_name() {
    #[track_caller]
    fn assert_named(sandbox: &Sandbox<'_>, name: &str, also: &str) {
        let script = "hostname; hostname -f; getent hosts \"$(hostname)\"; cat /etc/hosts";
        let said = sandbox.sh(script).succeeds().out();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..2], [name, name], "{said}");
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["127.0.1.1", name], "{said}");
        assert!(!said.contains(" sandbox\n") && said.contains("127.0.0.1 localhost"), "{said}");
        assert!(lines.contains(&also), "{said}");
    }
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "first-of-them"]);
    assert_named(&sandbox, "first-of-them", "127.0.1.1 first-of-them");
    let _ = sandbox.sh("echo 10.0.0.7 db >> /etc/hosts").succeeds();
    home.snapshot(&sandbox.id, "kept");
    let forked = home.cli(["fork", &sandbox.id]).deadline(Duration::from_secs(240)).run().succeeds();
    let fork = Sandbox::called(&home, forked.out().trim());
    assert_named(&fork, &fork.id, "10.0.0.7 db");
    let restored = home.create(&["--from", "kept", "--name", "b"]);
    assert_named(&restored, "b", "10.0.0.7 db");
    let _ = home.cli(["reset", "b"]).run().succeeds();
    assert_named(&restored, "b", "10.0.0.7 db");
    let _ = home.cli(["reset", &sandbox.id]).run().succeeds();
    assert_named(&sandbox, "first-of-them", "127.0.1.1 first-of-them");
    for sandbox in [&sandbox, &fork, &restored] {
        sandbox.remove();
    }
    home.remove_snapshots();
    home.assert_nothing_left();
}
