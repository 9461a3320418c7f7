//! Steps of a life: what is done to which sandbox by which command, and what the model says of it.

use crate::world::{Contents, Life, Modelled, PORT, Place, World};
use sandboxvm_tests::{
    home::{SMALL, Sandbox, eventually},
    host::processes,
};
use std::{fs, time::Duration};

/// Sandboxes at the same time. Each is a guest that takes memory and time.
const MAX_SANDBOXES: usize = 3;
const MAX_SNAPSHOTS: usize = 3;
/// A step that is drawn and cannot be taken is drawn again. After this many draws the model is wrong.
const MAX_DRAWS: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Create,
    CreateSupervised,
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

/// A step is drawn as often as it stands here.
const STEPS: [Step; 17] = [
    Step::Create,
    Step::CreateSupervised,
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

/// One command, and its effect.
#[derive(Debug, Clone)]
pub struct Act {
    pub step: Step,
    pub arguments: Vec<String>,
    /// The sandbox that it is about.
    pub sandbox: Option<String>,
    pub effect: Effect,
}

#[derive(Debug, Clone)]
pub enum Effect {
    /// The command prints the ID of a new sandbox.
    Appears(Modelled),
    Writes(Place, u32),
    TakesSnapshot(String, Contents),
    RemovesSnapshot(String),
    /// Its beginning is this from now on, too.
    Resets(Contents),
    /// The command fails, since the sandbox is a fork.
    Refuses,
    Becomes(Life),
    Removes,
}

impl World<'_> {
    /// Takes a step that can be taken now, which no process disturbs.
    pub fn step(&mut self) {
        let said = self.drawn(|world, step| match step {
            Step::Read => world.read(),
            Step::Kill => world.kill_idle(),
            step => world.act(step).map(|act| world.perform(&act)),
        });
        println!("{said}");
    }

    /// Draws steps until one can be taken.
    pub fn drawn<T>(&mut self, mut take: impl FnMut(&mut Self, Step) -> Option<T>) -> T {
        for _ in 0..MAX_DRAWS {
            let step = STEPS[self.random.usize(..STEPS.len())];
            if let Some(taken) = take(self, step) {
                return taken;
            }
        }
        panic!("no step can be taken: {:?} {:?}", self.sandboxes, self.snapshots);
    }

    fn read(&mut self) -> Option<String> {
        let (id, sandbox) = self.pick(|_| true)?;
        self.check(&id, &sandbox);
        Some(format!("Read: {id}"))
    }

    /// Kills a VMM while no command is at work.
    fn kill_idle(&mut self) -> Option<String> {
        let (id, _) = self.pick(|sandbox| sandbox.life != Life::Dead)?;
        processes::kill(self.guest(&id).vmm_pid());
        self.expect_dead(&id);
        Some(format!("Kill: {id}"))
    }

    /// Waits until a sandbox whose VMM was killed is listed as dead.
    #[track_caller]
    pub fn expect_dead(&mut self, id: &str) {
        let row = || (self.state(id) == "dead").then_some(());
        assert!(eventually(Duration::from_secs(10), row).is_some(), "{}", self.home.row(id));
        self.sandboxes.get_mut(id).expect("the model knows it").life = Life::Dead;
    }

    /// The command of a step: `None` when there is nothing to do it to.
    pub fn act(&mut self, step: Step) -> Option<Act> {
        let has_room = self.sandboxes.len() < MAX_SANDBOXES;
        let fresh = || Modelled::new(Contents::default(), Some(Contents::default()));
        let (words, sandbox, effect): (Vec<String>, _, _) = match step {
            Step::Create if has_room => (words(&["create", "-m", SMALL]), None, Effect::Appears(fresh())),
            Step::CreateSupervised if has_room => {
                let arguments = ["create", "-m", SMALL, "-p", PORT, "--ttl", "3h"];
                (words(&arguments), None, Effect::Appears(Modelled { supervised: true, ..fresh() }))
            }
            Step::CreateFromSnapshot if has_room => {
                let (name, contents) = self.pick_snapshot()?;
                let made = Modelled::new(contents, Some(contents));
                (words(&["create", "--from", &name]), None, Effect::Appears(made))
            }
            Step::Write => {
                let (id, _) = self.pick(|sandbox| sandbox.life == Life::Running)?;
                let word = self.fresh();
                let place = if self.random.bool() { Place::Disk } else { Place::Memory };
                let source = self.home.scratch("word");
                fs::write(&source, format!("{word}\n")).expect("the test's directory can be written");
                let arguments = ["cp", &source.display().to_string(), &format!("{id}:{}", place.path())];
                (words(&arguments), Some(id), Effect::Writes(place, word))
            }
            Step::Snapshot if self.snapshots.len() < MAX_SNAPSHOTS => {
                let (id, sandbox) = self.pick(|sandbox| sandbox.life != Life::Dead)?;
                let name = format!("s{}", self.fresh());
                let arguments = words(&["snapshot", "create", &id, &name]);
                (arguments, Some(id), Effect::TakesSnapshot(name, sandbox.contents))
            }
            Step::RemoveSnapshot => {
                let (name, _) = self.pick_snapshot()?;
                (words(&["snapshot", "rm", &name]), None, Effect::RemovesSnapshot(name))
            }
            Step::Fork if has_room => {
                let (id, sandbox) = self.pick(|sandbox| sandbox.life == Life::Running)?;
                let copy = Modelled::new(sandbox.contents, None);
                (words(&["fork", &id]), Some(id), Effect::Appears(copy))
            }
            Step::Reset => {
                let (id, sandbox) = self.pick(|_| true)?;
                let effect = sandbox.beginning.map_or(Effect::Refuses, Effect::Resets);
                (words(&["reset", &id]), Some(id), effect)
            }
            Step::ResetToSnapshot => {
                let (name, contents) = self.pick_snapshot()?;
                let (id, _) = self.pick(|_| true)?;
                (words(&["reset", &id, &name]), Some(id), Effect::Resets(contents))
            }
            Step::Pause => {
                let (id, _) = self.pick(|sandbox| sandbox.life == Life::Running)?;
                (words(&["pause", &id]), Some(id), Effect::Becomes(Life::Paused))
            }
            Step::Resume => {
                let (id, _) = self.pick(|sandbox| sandbox.life == Life::Paused)?;
                (words(&["resume", &id]), Some(id), Effect::Becomes(Life::Running))
            }
            Step::Remove => {
                let (id, _) = self.pick(|_| true)?;
                (words(&["rm", "-f", &id]), Some(id), Effect::Removes)
            }
            Step::Create | Step::CreateSupervised | Step::CreateFromSnapshot => return None,
            Step::Snapshot | Step::Fork | Step::Read | Step::Kill => return None,
        };
        Some(Act { step, arguments: words, sandbox, effect })
    }

    /// Runs the command to its end, and expects its effect.
    #[track_caller]
    pub fn perform(&mut self, act: &Act) -> String {
        let ran = self.run(&act.arguments);
        if matches!(act.effect, Effect::Refuses) {
            let _ = ran.fails_with(&["is a fork of"]);
            return format!("{act:?}");
        }
        let ran = ran.succeeds();
        let printed = matches!(act.effect, Effect::Appears(_)).then(|| Sandbox::printed(self.home, &ran).id);
        self.apply(act, printed.as_deref());
        format!("{act:?} -> {}", printed.unwrap_or_default())
    }

    /// Takes the effect into the model. `new` is the ID of the sandbox that appeared.
    #[track_caller]
    pub fn apply(&mut self, act: &Act, new: Option<&str>) {
        match &act.effect {
            Effect::Appears(made) => {
                let id = new.expect("a new sandbox has an ID");
                self.sandboxes.insert(id.to_owned(), made.clone());
            }
            Effect::TakesSnapshot(name, contents) => {
                self.snapshots.insert(name.clone(), *contents);
            }
            Effect::RemovesSnapshot(name) => {
                self.snapshots.remove(name);
            }
            Effect::Refuses => {}
            effect => {
                let id = act.sandbox.as_ref().expect("the step is about a sandbox");
                let sandbox = self.sandboxes.get_mut(id).expect("the model knows it");
                match effect {
                    Effect::Writes(place, word) => sandbox.contents = sandbox.contents.with(*place, *word),
                    Effect::Resets(contents) => {
                        let supervised = sandbox.supervised;
                        *sandbox = Modelled { supervised, ..Modelled::new(*contents, Some(*contents)) };
                    }
                    Effect::Becomes(life) => sandbox.life = *life,
                    _ => drop(self.sandboxes.remove(id)),
                }
            }
        }
    }
}

fn words(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}
