//! Random lives of sandboxes against a model of them: nothing that should be there is lost, nothing is there that should
//! not be, whatever happens to their VMMs; and in the end everything can be taken away.

use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    processes,
};
use std::{collections::BTreeMap, env, fmt, time::Duration};

/// At a time: each is a guest that takes memory and time.
const MOST_SANDBOXES: usize = 3;
const MOST_SNAPSHOTS: usize = 3;
/// A step that is drawn and cannot be taken is drawn again; far more often than that something is wrong with the model.
const MOST_DRAWS: usize = 1000;

/// What a guest has: a word on its disk and one in its memory; none before it was given any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Contents {
    disk: Option<u32>,
    memory: Option<u32>,
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |word: Option<u32>| word.map_or_else(|| "none".to_owned(), |word| word.to_string());
        write!(f, "{} {}", word(self.disk), word(self.memory))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Paused,
    /// Its VMM was killed.
    Dead,
}

#[derive(Debug, Clone)]
struct Modelled {
    life: Life,
    contents: Contents,
    /// What a reset brings back; nothing for a copy of a running one.
    beginning: Option<Contents>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Create,
    CreateFromSnapshot,
    Write,
    Read,
    Snapshot,
    RemoveSnapshot,
    Fork,
    Reset,
    ResetToSnapshot,
    Pause,
    Resume,
    Kill,
    Remove,
}

/// Drawn from as often as they are here.
const STEPS: [Step; 16] = [
    Step::Create,
    Step::CreateFromSnapshot,
    Step::Write,
    Step::Write,
    Step::Write,
    Step::Read,
    Step::Snapshot,
    Step::RemoveSnapshot,
    Step::Fork,
    Step::Reset,
    Step::ResetToSnapshot,
    Step::Pause,
    Step::Resume,
    Step::Resume,
    Step::Kill,
    Step::Remove,
];

struct World<'h> {
    home: &'h Home,
    random: fastrand::Rng,
    sandboxes: BTreeMap<String, Modelled>,
    snapshots: BTreeMap<String, Contents>,
    /// Words and names that were used.
    used: u32,
}

impl<'h> World<'h> {
    fn new(home: &'h Home, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { home, random, sandboxes: BTreeMap::new(), snapshots: BTreeMap::new(), used: 0 }
    }

    fn fresh(&mut self) -> u32 {
        self.used += 1;
        self.used
    }

    fn pick_snapshot(&mut self) -> Option<(String, Contents)> {
        let at = self.random.usize(..self.snapshots.len().max(1));
        self.snapshots.iter().nth(at).map(|(name, contents)| (name.clone(), *contents))
    }

    fn pick(&mut self, alive: impl Fn(Life) -> bool) -> Option<(String, Modelled)> {
        let fitting: Vec<_> = self.sandboxes.iter().filter(|(_, sandbox)| alive(sandbox.life)).collect();
        let at = self.random.usize(..fitting.len().max(1));
        fitting.get(at).map(|(id, sandbox)| ((*id).clone(), (*sandbox).clone()))
    }

    fn guest(&self, id: &str) -> Sandbox<'h> {
        Sandbox::called(self.home, id)
    }

    /// Takes a step that can be taken now.
    fn step(&mut self) {
        for _ in 0..MOST_DRAWS {
            let step = STEPS[self.random.usize(..STEPS.len())];
            if let Some(said) = self.try_step(step) {
                println!("{step:?}: {said}");
                return;
            }
        }
        panic!("no step can be taken: {:?} {:?}", self.sandboxes, self.snapshots);
    }

    /// `None` when there is nothing to do it to.
    fn try_step(&mut self, step: Step) -> Option<String> {
        let has_room = self.sandboxes.len() < MOST_SANDBOXES;
        match step {
            Step::Create if has_room => {
                let id = self.home.create(&["-m", SMALL]).id;
                self.appear(&id, Contents::default(), Some(Contents::default()));
                Some(id)
            }
            Step::CreateFromSnapshot if has_room => {
                let (name, contents) = self.pick_snapshot()?;
                let id = self.home.create(&["--from", &name]).id;
                self.appear(&id, contents, Some(contents));
                Some(format!("{id} from {name}"))
            }
            Step::Write => {
                let (id, mut sandbox) = self.pick(|life| life == Life::Running)?;
                let word = self.fresh();
                let path = if self.random.bool() {
                    sandbox.contents.disk = Some(word);
                    "/root/word"
                } else {
                    sandbox.contents.memory = Some(word);
                    "/dev/shm/word"
                };
                let _ = self.guest(&id).sh(&format!("echo {word} > {path}")).succeeds();
                self.sandboxes.insert(id.clone(), sandbox);
                Some(format!("{word} to {path} of {id}"))
            }
            Step::Read => {
                let (id, sandbox) = self.pick(|_| true)?;
                self.check(&id, &sandbox);
                Some(id)
            }
            Step::Snapshot if self.snapshots.len() < MOST_SNAPSHOTS => {
                let (id, sandbox) = self.pick(|life| life != Life::Dead)?;
                let name = format!("s{}", self.fresh());
                self.home.snapshot(&id, &name);
                self.snapshots.insert(name.clone(), sandbox.contents);
                Some(format!("{name} of {id}"))
            }
            Step::RemoveSnapshot => {
                let (name, _) = self.pick_snapshot()?;
                let _ = self.home.cli(["snapshot", "rm", &name]).run().succeeds();
                self.snapshots.remove(&name);
                Some(name)
            }
            Step::Fork if has_room => {
                let (id, sandbox) = self.pick(|life| life == Life::Running)?;
                let copy = Sandbox::printed(self.home, &self.home.cli(["fork", &id]).run().succeeds()).id;
                self.appear(&copy, sandbox.contents, None);
                Some(format!("{copy} of {id}"))
            }
            Step::Reset => {
                let (id, sandbox) = self.pick(|_| true)?;
                let reset = self.home.cli(["reset", &id]).run();
                match sandbox.beginning {
                    Some(contents) => {
                        let _ = reset.succeeds();
                        self.appear(&id, contents, Some(contents));
                    }
                    None => drop(reset.fails_with(&["is a fork of"])),
                }
                Some(format!("{id}, {:?}", sandbox.beginning))
            }
            Step::ResetToSnapshot => {
                let (name, contents) = self.pick_snapshot()?;
                let (id, _) = self.pick(|_| true)?;
                let _ = self.home.cli(["reset", &id, &name]).run().succeeds();
                self.appear(&id, contents, Some(contents));
                Some(format!("{id} to {name}"))
            }
            Step::Pause => {
                let (id, _) = self.pick(|life| life == Life::Running)?;
                let _ = self.home.cli(["pause", &id]).run().succeeds();
                self.sandboxes.get_mut(&id)?.life = Life::Paused;
                Some(id)
            }
            Step::Resume => {
                let (id, _) = self.pick(|life| life == Life::Paused)?;
                let _ = self.home.cli(["resume", &id]).run().succeeds();
                self.sandboxes.get_mut(&id)?.life = Life::Running;
                Some(id)
            }
            Step::Kill => {
                let (id, _) = self.pick(|life| life != Life::Dead)?;
                processes::kill(self.guest(&id).vmm_pid());
                let row = || (self.home.row(&id)["state"] == "dead").then_some(());
                assert!(eventually(Duration::from_secs(10), row).is_some(), "{}", self.home.row(&id));
                self.sandboxes.get_mut(&id)?.life = Life::Dead;
                Some(id)
            }
            Step::Remove => {
                let (id, _) = self.pick(|_| true)?;
                self.guest(&id).remove();
                self.sandboxes.remove(&id);
                Some(id)
            }
            Step::Create | Step::CreateFromSnapshot | Step::Snapshot | Step::Fork => None,
        }
    }

    fn appear(&mut self, id: &str, contents: Contents, beginning: Option<Contents>) {
        self.sandboxes.insert(id.to_owned(), Modelled { life: Life::Running, contents, beginning });
    }

    /// The guest has what it should have, or says why it cannot be asked.
    fn check(&self, id: &str, sandbox: &Modelled) {
        let script = "for f in /root/word /dev/shm/word; do w=none; [ ! -e $f ] || read -r w < $f; echo $w; done";
        let run = self.guest(id).sh(script);
        match sandbox.life {
            Life::Running => {
                let words = run.succeeds().out().trim_end().replace('\n', " ");
                assert_eq!(words, sandbox.contents.to_string(), "{id}: {sandbox:?}");
            }
            Life::Paused => drop(run.fails_with(&["is paused", "resume"])),
            Life::Dead => drop(run.fails_with(&["is not running"])),
        }
    }

    /// All that there should be is there, and nothing else.
    fn check_all(&self) {
        let mut listed = self.home.listed();
        listed.sort();
        assert_eq!(listed, self.sandboxes.keys().cloned().collect::<Vec<_>>());
        let mut snapshots = self.home.snapshot_names();
        snapshots.sort();
        assert_eq!(snapshots, self.snapshots.keys().cloned().collect::<Vec<_>>());
        for (id, sandbox) in &self.sandboxes {
            let state = match sandbox.life {
                Life::Running => "running",
                Life::Paused => "paused",
                Life::Dead => "dead",
            };
            assert_eq!(self.home.row(id)["state"], state, "{id}");
            self.check(id, sandbox);
        }
    }
}

fn live(steps: usize) {
    let Some(home) = Home::with_kvm() else { return };
    let seed = match env::var("SANDBOXVM_MODEL_SEED") {
        Ok(seed) => seed.parse().expect("SANDBOXVM_MODEL_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("SANDBOXVM_MODEL_SEED={seed}");
    let mut world = World::new(&home, seed);
    for _ in 0..steps {
        world.step();
    }
    world.check_all();
    let verified = home.cli(["audit", "verify", "--json"]).run().succeeds().json();
    assert!(verified.as_array().is_some_and(|verdicts| !verdicts.is_empty()), "{verified}");
    for id in world.sandboxes.keys() {
        world.guest(id).remove();
    }
    home.remove_snapshots();
    let _ = home.cli(["prune"]).run().succeeds();
    home.assert_nothing_left();
}

#[test]
fn random_lives_are_as_the_model_says() {
    live(25);
}

/// `SANDBOXVM_MODEL_STEPS` says for how long.
#[test]
#[ignore = "soak: as long as asked"]
fn long_random_lives_are_as_the_model_says() {
    live(
        env::var("SANDBOXVM_MODEL_STEPS")
            .map_or(400, |steps| steps.parse().expect("SANDBOXVM_MODEL_STEPS is a number")),
    );
}
