//! `kill -9` of the CLI or of the VMM at many moments of a snapshot, fork or restore. A snapshot is
//! then complete or absent, the surviving processes are unaffected, and all that is left can be
//! removed. The tests look only at the guest, the exit code and the files of the home.

use Killed::{Cli, Vmm};
use Moment::{After, Memory, Seen, Staged, State};
use Operation::{Fork, Restore, Snapshot};
use rustix::process::Signal;
use sandboxvm_tests::{
    cli::Running,
    home::{Home, SMALL, Sandbox, eventually},
    host::{leaks, processes},
};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// The operation that is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// `snapshot create` of the victim.
    Snapshot,
    /// `fork` of the victim.
    Fork,
    /// `create --from` the snapshot from which the victim was restored.
    Restore,
}

/// The process that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Cli,
    /// The VMM of the victim, or of the new sandbox if the operation is a restore.
    Vmm,
}

/// The moment of the kill.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    /// A directory is in `staging`. In a restore: its VMM has started.
    Staged,
    /// The state file of the snapshot exists: the VMM is about to receive the request.
    State,
    /// The memory file of the snapshot is not empty: the VMM is writing it.
    Memory,
    /// A new sandbox is listed.
    Seen,
    /// This part of the usual duration has passed.
    After(f64),
}

/// One kill -9.
#[derive(Debug, Clone, Copy)]
struct Kill {
    operation: Operation,
    killed: Killed,
    moment: Moment,
}

/// How often a moment that lasts less than a millisecond may be missed before the test fails.
const TRIES: usize = 8;
/// The snapshot from which the victim is restored.
const BASE: &str = "base";
/// Prints the content of a file on the guest's disk and of one in its memory, and its hostname.
const SHOW: &str = "for f in /root/round /dev/shm/round /proc/sys/kernel/hostname; do read -r x < $f; echo $x; done";

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().expect("the name is ASCII")).collect()
}

/// Returns the number of files that snapshots, forks and resets add to a sandbox's directory.
fn layers(sandbox: &Sandbox<'_>) -> usize {
    let numbered = |name: &String| ["state.", "memory.", "disk."].iter().any(|kind| name.starts_with(kind));
    names(&sandbox.directory()).iter().filter(|name| numbered(name)).count()
}

/// A sandbox on which operations are interrupted, one after the other.
struct Scene<'h> {
    home: &'h Home,
    victim: Sandbox<'h>,
    /// The content of its two files.
    content: String,
}

impl<'h> Scene<'h> {
    fn begin(home: &'h Home) -> Self {
        let original = home.create(&["-m", SMALL]);
        let _ = original.sh("echo base > /root/round; echo base > /dev/shm/round").succeeds();
        home.snapshot(&original.id, BASE);
        original.remove();
        let victim = home.create(&["--from", BASE, "--name", "victim"]);
        Self { home, victim, content: BASE.to_owned() }
    }

    fn start(&self, operation: Operation, round: &str) -> Running {
        match operation {
            Snapshot => self.home.cli(["snapshot", "create", "victim", round]).spawn(),
            Fork => self.home.cli(["fork", "victim", "-n", "2"]).spawn(),
            Restore => self.home.cli(["create", "--from", BASE]).spawn(),
        }
    }

    /// Writes content that no snapshot has yet.
    fn write(&mut self, content: &str) {
        let script = format!("echo {content} > /root/round; echo {content} > /dev/shm/round");
        let _ = self.victim.sh(&script).succeeds();
        content.clone_into(&mut self.content);
    }

    fn assert_shows(&self, sandbox: &Sandbox<'_>, content: &str, hostname: &str) {
        let run = sandbox.sh(SHOW).succeeds();
        assert_eq!(run.out(), format!("{content}\n{content}\n{hostname}\n"), "{}", sandbox.id);
    }

    fn others(&self) -> Vec<Sandbox<'h>> {
        let others = self.home.listed().into_iter().filter(|id| *id != self.victim.id);
        others.map(|id| Sandbox::called(self.home, &id)).collect()
    }

    /// Returns how long the operation takes if it is not interrupted.
    fn measure(&self, operation: Operation) -> Duration {
        let begin = Instant::now();
        let _ = self.start(operation, "measured").finish().succeeds();
        let took = begin.elapsed();
        if operation == Snapshot {
            let _ = self.home.cli(["snapshot", "rm", "measured"]).run().succeeds();
        }
        self.others().iter().for_each(Sandbox::remove);
        took
    }

    /// Returns whether the moment has come.
    fn has_come(&self, kill: &Kill, cli: u32, begin: Instant, usual: Duration) -> bool {
        let staging = self.home.path().join("staging");
        let staged = || names(&staging).into_iter().map(|name| staging.join(name));
        match kill.moment {
            Staged if kill.operation == Restore => !processes::children(cli).is_empty(),
            Staged => staged().next().is_some(),
            State => staged().any(|path| path.join("state").exists()),
            Memory => staged().any(|path| fs::metadata(path.join("memory.new")).is_ok_and(|file| file.len() > 0)),
            Seen => names(&self.home.path().join("sandboxes")).len() > 1,
            After(part) => begin.elapsed() >= usual.mul_f64(part),
        }
    }

    /// Starts the operation and kills the process. Returns `None` if the operation ended before the
    /// moment was seen. Otherwise returns the CLI's exit code, if it has one.
    fn interrupt(&self, kill: &Kill, name: &str, usual: Duration) -> Option<Option<i32>> {
        let vmm = self.victim.vmm_pid();
        let mut run = self.start(kill.operation, name);
        let begin = Instant::now();
        while !self.has_come(kill, run.pid(), begin, usual) {
            if run.has_ended() {
                if matches!(kill.moment, After(_)) {
                    break;
                }
                let _ = run.finish().succeeds();
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        match kill.killed {
            Cli if run.has_ended() => {}
            Cli => run.signal(Signal::KILL),
            // If the moment is only a time, there may be no VMM yet, or it may have ended.
            Vmm if kill.operation == Restore => processes::children(run.pid()).into_iter().for_each(processes::kill),
            Vmm => processes::kill(vmm),
        }
        Some(run.finish().code())
    }

    fn round(&mut self, kill: &Kill, name: &str, usual: Duration) {
        let &Kill { operation, killed, moment } = kill;
        if operation == Snapshot {
            self.write(name);
        }
        let mut tries = 0;
        let code = loop {
            tries += 1;
            if let Some(code) = self.interrupt(kill, name, usual) {
                break code;
            }
            assert!(tries < TRIES, "{operation:?} was over {TRIES} times before {moment:?} was seen");
            if operation == Snapshot {
                let _ = self.home.cli(["snapshot", "rm", name]).run().succeeds();
            }
            self.others().iter().for_each(Sandbox::remove);
        };
        println!("{operation:?}, {killed:?} killed at {moment:?} (try {tries}): exit code {code:?}");
        // The exit code is true.
        assert!([None, Some(0), Some(125)].contains(&code), "{code:?}");

        let listed = self.home.snapshot_names();
        assert_eq!(
            names(&self.home.path().join("snapshots")),
            listed.iter().cloned().collect(),
            "an incomplete snapshot is visible"
        );
        assert!(listed.contains(&BASE.to_owned()));
        if operation == Snapshot
            && let Some(code) = code
        {
            assert_eq!(listed.contains(&name.to_owned()), code == 0, "exit code {code}, and there is {listed:?}");
        }
        self.assert_others_are_whole(operation);
        if killed == Vmm && operation != Restore {
            let state = || self.home.row(&self.victim.id)["state"].clone();
            let is_dead = eventually(Duration::from_secs(10), || (state() == "dead").then_some(()));
            assert!(is_dead.is_some(), "the VMM was killed, and the sandbox is {}", state());
            let _ = self.home.cli(["reset", "victim"]).run().succeeds();
            BASE.clone_into(&mut self.content);
        }
        self.assert_shows(&self.victim, &self.content, "victim");
        let mut wanted: Vec<(String, String)> = Vec::new();
        if listed.contains(&name.to_owned()) {
            wanted.push((name.to_owned(), name.to_owned()));
        }
        if operation == Snapshot && killed == Cli {
            // The VMM may still be writing the interrupted snapshot. After that, the next one
            // succeeds.
            let next = format!("{name}-next");
            let made = eventually(Duration::from_secs(30), || {
                (self.home.cli(["snapshot", "create", "victim", &next]).run().code() == Some(0)).then_some(())
            });
            assert!(made.is_some(), "no snapshot can be made after one was killed");
            wanted.push((next, self.content.clone()));
        }
        for (snapshot, content) in wanted {
            let restored = self.home.create(&["--from", &snapshot]);
            self.assert_shows(&restored, &content, &restored.id);
            restored.remove();
            let _ = self.home.cli(["snapshot", "rm", &snapshot]).run().succeeds();
        }
        let _ = self.home.cli(["prune"]).run().succeeds();
        self.assert_only_the_victim_is_left();
    }

    /// Asserts that every other sandbox is complete or does not run. Removes them unless `prune`
    /// should do that.
    fn assert_others_are_whole(&self, operation: Operation) {
        for other in self.others() {
            let is = || self.home.row(&other.id)["state"].clone();
            let settled = eventually(Duration::from_secs(60), || Some(is()).filter(|state| state != "creating"));
            if settled.is_none_or(|state| state != "running") {
                continue;
            }
            let content = if operation == Fork { self.content.as_str() } else { BASE };
            let run = other.sh(SHOW);
            // A copy whose command was killed before it printed the ID ends a moment later.
            if run.code() == Some(0) || is() == "running" {
                assert_eq!(run.succeeds().out(), format!("{content}\n{content}\n{0}\n", other.id), "{}", other.id);
                other.remove();
            }
        }
    }

    fn assert_only_the_victim_is_left(&self) {
        // The sockets of the victim are recognised by their paths.
        let its = format!("/{}", self.victim.id);
        let left = || -> Vec<String> {
            let process = format!("process {} ", self.victim.vmm_pid());
            let expected = [its.as_str(), "/snapshots/base", "/names/victim", &process];
            let all = leaks::what_is_left(&self.home.path()).into_iter();
            all.filter(|line| !expected.iter().any(|part| line.contains(part))).collect()
        };
        if eventually(Duration::from_secs(2), || left().is_empty().then_some(())).is_none() {
            panic!("left behind:\n  {}", left().join("\n  "));
        }
    }
}

fn kill_at(rounds: &[(Operation, Killed, Moment)]) {
    let Some(home) = Home::with_kvm() else { return };
    let mut scene = Scene::begin(&home);
    let _ = home.cli(["reset", "victim"]).run().succeeds();
    let before = layers(&scene.victim);
    let usual: Vec<(Operation, Duration)> = [Snapshot, Fork, Restore]
        .into_iter()
        .filter(|operation| rounds.iter().any(|(o, _, moment)| o == operation && matches!(moment, After(_))))
        .map(|operation| (operation, scene.measure(operation)))
        .collect();
    println!("undisturbed: {usual:?}");
    for (number, &(operation, killed, moment)) in rounds.iter().enumerate() {
        let took = usual.iter().find(|(o, _)| *o == operation).map_or(Duration::ZERO, |(_, took)| *took);
        scene.round(&Kill { operation, killed, moment }, &format!("s{number}"), took);
    }
    // After all these operations the sandbox has kept no file of them.
    let _ = home.cli(["reset", "victim"]).run().succeeds();
    assert_eq!(layers(&scene.victim), before, "{:?}", names(&scene.victim.directory()));
    scene.victim.remove();
    home.remove_snapshots();
    let _ = home.cli(["prune"]).run().succeeds();
    home.assert_nothing_left();
}

#[test]
fn kills_leave_snapshots_complete_or_absent_and_nothing_else() {
    kill_at(&[
        (Snapshot, Cli, Staged),
        (Snapshot, Vmm, State),
        (Snapshot, Cli, Memory),
        (Snapshot, Vmm, Memory),
        (Snapshot, Cli, After(0.8)),
        (Snapshot, Vmm, After(0.9)),
        (Fork, Cli, Seen),
        (Fork, Vmm, Seen),
        (Restore, Cli, Staged),
        (Restore, Vmm, Seen),
    ]);
}

#[test]
#[ignore = "soak: a hundred moments"]
fn a_hundred_kills_leave_snapshots_complete_or_absent() {
    let mut rounds = Vec::new();
    for operation in [Snapshot, Fork, Restore] {
        for killed in [Cli, Vmm] {
            let certain: &[Moment] = if operation == Snapshot { &[Staged, State, Memory] } else { &[Staged, Seen] };
            rounds.extend(certain.iter().map(|moment| (operation, killed, *moment)));
            rounds.extend((1..=15).map(|part| (operation, killed, After(f64::from(part) / 14.0))));
        }
    }
    kill_at(&rounds);
}
