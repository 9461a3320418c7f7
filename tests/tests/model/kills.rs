//! Kills in the middle of a step. After each of them the home is as if the step had happened or as if it had not: the model
//! learns which by looking, accepts nothing else, and continues from there.

use crate::{
    steps::{Act, Effect, Step},
    world::{Contents, Life, Modelled, Place, SOON, World},
};
use rustix::process::Signal;
use sandboxvm_tests::{
    cli::{Finished, Running},
    home::{Sandbox, eventually},
    host::processes,
};
use std::{
    collections::BTreeMap,
    fmt, fs, thread,
    time::{Duration, Instant},
};

/// What a VMM received before the command that sent it was killed has an effect within this time.
const AFTERMATH: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Cli,
    Vmm,
    Supervisor,
    Server,
}

/// How often what was killed in the middle of what, and what the step came to.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<(Victim, String), usize>);

impl Figures {
    pub fn sum(&self) -> usize {
        self.0.values().sum()
    }

    pub fn count(&mut self, victim: Victim, what: String) {
        *self.0.entry((victim, what)).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for ((victim, what), number) in &other.0 {
            *self.0.entry((*victim, what.clone())).or_default() += number;
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((victim, what), number) in &self.0 {
            writeln!(f, "  {number:4} {victim:?} in {what}")?;
        }
        Ok(())
    }
}

/// What a step that was disturbed came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Whole,
    ToNothing,
    /// A reset or removal that had ended the machine: repeating the command completes it.
    HalfWay,
}

/// A VMM that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    OfTheSandbox,
    /// The command had just started it.
    New,
}

impl World<'_> {
    /// Takes a step, and kills a process in the middle of most.
    pub fn step_with_kills(&mut self) {
        match self.random.u8(..100) {
            0..=19 => self.step(),
            20..=57 => self.disturb(Victim::Cli),
            58..=77 => self.disturb(Victim::Vmm),
            78..=87 => self.disturb_supervised(),
            _ => self.kill_server(),
        }
    }

    fn disturb_supervised(&mut self) {
        let is_there =
            |world: &mut Self| world.pick(|sandbox| sandbox.supervised && sandbox.life != Life::Dead).is_some();
        if !is_there(self)
            && let Some(act) = self.act(Step::CreateSupervised)
        {
            println!("{}", self.perform(&act));
        }
        let victim = if is_there(self) { Victim::Supervisor } else { Victim::Cli };
        self.disturb(victim);
    }

    fn disturb(&mut self, victim: Victim) {
        let act = self.drawn(|world, step| world.act(step).filter(|act| world.fits(victim, act)));
        let name = format!("{:?}", act.step);
        let usual = self.usual.get(&name).copied().unwrap_or_else(|| first_guess(act.step));
        let moment = usual.mul_f64(self.random.f64());
        let old = act.sandbox.as_ref().filter(|id| self.sandboxes[*id].life != Life::Dead);
        let vmm = old.map(|id| self.guest(id).vmm_pid());
        let supervisor = old.filter(|_| victim == Victim::Supervisor).map(|id| self.supervisor(id));

        let mut run = self.home.cli(&act.arguments).spawn();
        let begin = Instant::now();
        while begin.elapsed() < moment && !run.has_ended() {
            thread::sleep(Duration::from_millis(1));
        }
        let mut killed_vmm = None;
        let mut killed = false;
        match victim {
            _ if run.has_ended() => {}
            Victim::Cli => run.signal(Signal::KILL),
            Victim::Vmm => {
                killed_vmm = self.kill_vmm(&act, vmm, &run);
                killed = killed_vmm.is_some();
            }
            _ => killed = processes::kill_if_it_holds(supervisor.expect("it was looked up"), &self.home.path()),
        }
        let ran = run.finish();
        killed |= ran.signal() == Some(9);
        let said = format!("{act:?}: {victim:?} at {moment:?} of {usual:?}");
        println!("{said}{}", if killed { "" } else { ", too late" });
        // So the moments spread over all of a step, however fast the host is.
        let next = if killed { usual.mul_f64(1.05) } else { (usual * 3 + ran.elapsed) / 4 };
        self.usual.insert(name.clone(), next);
        let came = match (killed, victim, killed_vmm) {
            (true, Victim::Cli, _) => self.learn_without_cli(&act, &ran),
            (true, _, Some(vmm)) => self.learn_without_vmm(&act, &ran, vmm),
            _ => {
                self.learn_from_answer(&act, ran);
                Came::Whole
            }
        };
        if victim == Victim::Supervisor && killed {
            self.expect_another_supervisor(&act);
        }
        if killed {
            println!("    {came:?}");
            self.figures.count(victim, format!("{name}: {came:?}"));
        }
    }

    fn fits(&self, victim: Victim, act: &Act) -> bool {
        let sandbox = act.sandbox.as_ref().map(|id| &self.sandboxes[id]);
        let is_live = sandbox.is_some_and(|sandbox| sandbox.life != Life::Dead);
        match victim {
            Victim::Cli => true,
            Victim::Vmm => is_live || matches!(act.effect, Effect::Appears(_) | Effect::Resets(_)),
            _ => is_live && sandbox.is_some_and(|sandbox| sandbox.supervised),
        }
    }

    fn supervisor(&self, id: &str) -> u32 {
        // It may be starting: the command before this one made it, or replaced it.
        let found = eventually(SOON, || {
            let holders = processes::that_hold(&self.guest(id).directory());
            holders.into_iter().find(|process| process.command.contains(" supervise "))
        });
        found.unwrap_or_else(|| panic!("{id} has no supervisor")).pid
    }

    /// Kills the VMM of the step's sandbox, or one that the command has started.
    fn kill_vmm(&mut self, act: &Act, old: Option<u32>, run: &Running) -> Option<Vmm> {
        let is_vmm = |pid: &u32| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.to_string_lossy().contains("sandboxvm-vmm"))
        };
        let new = processes::children(run.pid()).into_iter().filter(is_vmm).map(|pid| (pid, Vmm::New));
        let old = old.filter(|pid| is_vmm(pid)).map(|pid| (pid, Vmm::OfTheSandbox));
        let all: Vec<_> = new.chain(old).collect();
        if all.is_empty() {
            println!("    {act:?} has no VMM now");
            return None;
        }
        let (pid, which) = all[self.random.usize(..all.len())];
        processes::kill_if_it_holds(pid, &self.home.path()).then_some(which)
    }

    /// No process of the step was killed before it answered.
    #[track_caller]
    fn learn_from_answer(&mut self, act: &Act, ran: Finished) {
        if ran.code() == Some(125) && ran.err().contains("is being written") {
            return;
        }
        if matches!(act.effect, Effect::Refuses) {
            let _ = ran.fails_with(&["is a fork of"]);
            return;
        }
        let ran = ran.succeeds();
        let printed = matches!(act.effect, Effect::Appears(_)).then(|| Sandbox::printed(self.home, &ran).id);
        self.apply(act, printed.as_deref());
    }

    #[track_caller]
    fn learn_without_cli(&mut self, act: &Act, ran: &Finished) -> Came {
        let before = act.sandbox.as_ref().map(|id| (id.clone(), self.sandboxes[id].clone()));
        let has_happened = match (&act.effect, before) {
            (Effect::Appears(made), _) => return self.learn_what_appeared(act, made, ran),
            (Effect::TakesSnapshot(name, _), _) => {
                let is_there = self.listed_snapshots().contains(name);
                if is_there {
                    let _ = self.home.cli(["snapshot", "verify", name]).run().succeeds();
                }
                is_there
            }
            (Effect::RemovesSnapshot(name), _) => !self.listed_snapshots().contains(name),
            (Effect::Writes(place, word), Some((id, before))) => self.is_written(&id, &before, *place, *word),
            (Effect::Becomes(life), Some((id, before))) => {
                let state = self.state_after(&id, before.life);
                assert!(before.life.is_shown_as(&state) || life.is_shown_as(&state), "{id} is {state}");
                state == life.state()
            }
            (Effect::Resets(contents), Some((id, before))) => return self.learn_reset(act, &id, &before, *contents),
            (Effect::Removes, Some((id, before))) => return self.learn_removal(act, &id, &before),
            (Effect::Refuses, _) => false,
            (effect, None) => panic!("{effect:?} of no sandbox"),
        };
        if has_happened {
            self.apply(act, None);
            return Came::Whole;
        }
        Came::ToNothing
    }

    /// A killed command's new sandbox is whole, or does not run, and is removed like any other.
    #[track_caller]
    fn learn_what_appeared(&mut self, act: &Act, made: &Modelled, ran: &Finished) -> Came {
        let place = Place::that_differs(made.contents, Contents::default());
        let looked = eventually(SOON, || {
            let (id, state) = match &self.unknown()[..] {
                [] => return Some(None),
                [one] => one.clone(),
                more => panic!("{act:?} made {more:?}"),
            };
            match state.as_str() {
                "creating" => None,
                // One that ends with the command may be asked a last time.
                "running" => self.word(&id, place).ok().map(|word| Some((id, Some(word)))),
                _ => Some(Some((id, None))),
            }
        });
        let printed = ran.out().trim().to_owned();
        match looked.unwrap_or_else(|| panic!("{act:?} left {:?}, which cannot be asked", self.unknown())) {
            Some((id, Some(word))) => {
                assert_eq!(word, made.contents.at(place), "{act:?} made {id}");
                self.apply(act, Some(&id));
                if made.supervised {
                    self.check_supervised(&id);
                }
                Came::Whole
            }
            left => {
                assert!(printed.is_empty(), "{act:?} printed {printed}, which does not run");
                if let Some((id, _)) = left {
                    let _ = self.home.cli(["rm", &id]).run().succeeds();
                }
                Came::ToNothing
            }
        }
    }

    /// Listed sandboxes that the model does not know, with their states.
    fn unknown(&self) -> Vec<(String, String)> {
        let rows = self.home.cli(["ls", "--json"]).run().succeeds().json();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let all = rows.as_array().into_iter().flatten().map(|row| (text(&row["id"]), text(&row["state"])));
        let is_known =
            |id: &String| self.sandboxes.contains_key(id) || self.served.as_ref().is_some_and(|served| served.owns(id));
        all.filter(|(id, _)| !is_known(id)).collect()
    }

    /// The state of a sandbox once it is another one than before, or when it would be by now.
    fn state_after(&self, id: &str, before: Life) -> String {
        let deadline = Instant::now() + AFTERMATH;
        loop {
            let state = self.state(id);
            if state != "creating" && (!before.is_shown_as(&state) || Instant::now() > deadline) {
                return state;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn is_written(&self, id: &str, before: &Modelled, place: Place, word: u32) -> bool {
        let old = before.contents.at(place);
        // The agent may be about to replace the file while it is asked for the first time.
        for _ in 0..2 {
            let found = self.word(id, place).unwrap_or_else(|why| panic!("{id} cannot be asked: {why}"));
            assert!([old, Some(word)].contains(&found), "{id} has {found:?}, not {old:?} or {word}");
            if found == Some(word) {
                return true;
            }
        }
        false
    }

    /// A machine that was replaced by another may have ended before the other one was made.
    #[track_caller]
    fn learn_reset(&mut self, act: &Act, id: &str, before: &Modelled, contents: Contents) -> Came {
        let state = self.state_after(id, before.life);
        if state != "running" {
            if state == before.life.state() && before.life == Life::Paused {
                return Came::ToNothing;
            }
            assert!(["dead", "exited"].contains(&state.as_str()), "{id} is {state}");
            return self.complete_reset(id, &[before.beginning, Some(contents)]);
        }
        let place = Place::that_differs(before.contents, contents);
        let [old, new] = [before.contents, contents].map(|contents| contents.at(place));
        let word = eventually(SOON, || self.word(id, place).ok());
        let word = word.unwrap_or_else(|| panic!("{id} was reset and cannot be asked: {:?}", self.word(id, place)));
        if word == new && (before.life != Life::Running || old != new) {
            self.apply(act, None);
            return Came::Whole;
        }
        assert_eq!((word, before.life), (old, Life::Running), "{id} was to be reset to {contents}");
        if old != new {
            return Came::ToNothing;
        }
        // Both look the same, but for what the next reset restores.
        self.complete_reset(id, &[before.beginning, Some(contents)])
    }

    /// Resets a sandbox whose beginning is one of these, and learns which.
    #[track_caller]
    fn complete_reset(&mut self, id: &str, beginnings: &[Option<Contents>]) -> Came {
        let reset = self.run(&["reset".to_owned(), id.to_owned()]);
        let sandbox = self.sandboxes.get_mut(id).expect("the model knows it");
        if reset.code() == Some(125) && beginnings.contains(&None) {
            let _ = reset.fails_with(&["is a fork of"]);
            sandbox.beginning = None;
            if self.state(id) != "running" {
                self.sandboxes.get_mut(id).expect("the model knows it").life = Life::Dead;
            }
            return Came::HalfWay;
        }
        let _ = reset.succeeds();
        let all: Vec<Contents> = beginnings.iter().flatten().copied().collect();
        let place = Place::that_differs(all[0], all[all.len() - 1]);
        let word = self.word(id, place).unwrap_or_else(|why| panic!("{id} cannot be asked: {why}"));
        let found = all.iter().find(|contents| contents.at(place) == word);
        let words = *found.unwrap_or_else(|| panic!("{id} has {word:?} and was reset to one of {beginnings:?}"));
        let sandbox = self.sandboxes.get_mut(id).expect("the model knows it");
        *sandbox = Modelled { supervised: sandbox.supervised, ..Modelled::new(words, Some(words)) };
        Came::HalfWay
    }

    #[track_caller]
    fn learn_removal(&mut self, act: &Act, id: &str, before: &Modelled) -> Came {
        let is_there = || self.listed().iter().any(|listed| listed == id);
        let gone = |world: &mut Self| {
            world.apply(act, None);
            Came::Whole
        };
        if !is_there() {
            return gone(self);
        }
        let state = self.state_after(id, before.life);
        if before.life.is_shown_as(&state) {
            return Came::ToNothing;
        }
        assert!(["dead", "exited"].contains(&state.as_str()), "{id} is {state}");
        let _ = self.run(&act.arguments).succeeds();
        gone(self);
        Came::HalfWay
    }

    #[track_caller]
    fn learn_without_vmm(&mut self, act: &Act, ran: &Finished, killed: Vmm) -> Came {
        let worked = match ran.code() {
            Some(0) => true,
            Some(125) => false,
            _ => panic!("{act:?}: {}", ran.transcript()),
        };
        match &act.effect {
            Effect::Appears(made) => {
                let printed = worked.then(|| ran.out().trim().to_owned());
                match &printed {
                    Some(id) => {
                        self.apply(act, Some(id));
                        if killed == Vmm::New {
                            self.expect_dead(id);
                        } else {
                            self.expect_contents(id, made.contents);
                        }
                    }
                    None => {
                        let clean = eventually(SOON, || self.unknown().is_empty().then_some(()));
                        assert!(clean.is_some(), "{act:?} failed and left {:?}", self.unknown());
                    }
                }
                self.expect_death_of(act, killed);
            }
            Effect::TakesSnapshot(name, _) => {
                assert_eq!(self.listed_snapshots().contains(name), worked, "{}", ran.transcript());
                if worked {
                    let _ = self.home.cli(["snapshot", "verify", name]).run().succeeds();
                    self.apply(act, None);
                }
                self.expect_death_of(act, killed);
            }
            Effect::Resets(contents) => {
                let id = act.sandbox.clone().expect("a reset is of a sandbox");
                let before = self.sandboxes[&id].clone();
                if !worked {
                    self.expect_dead(&id);
                    return self.complete_reset(&id, &[before.beginning, Some(*contents)]);
                }
                self.apply(act, None);
                // Killed when it was reset already, or before another one took its place.
                if self.state_after(&id, Life::Running) == "running" {
                    self.expect_contents(&id, *contents);
                } else {
                    self.expect_dead(&id);
                }
            }
            Effect::Removes => {
                assert!(worked, "{}", ran.transcript());
                self.apply(act, None);
            }
            Effect::Writes(..) | Effect::Becomes(_) | Effect::Refuses | Effect::RemovesSnapshot(_) => {
                self.expect_death_of(act, killed);
            }
        }
        if worked { Came::Whole } else { Came::ToNothing }
    }

    #[track_caller]
    fn expect_contents(&self, id: &str, contents: Contents) {
        let place = Place::that_differs(contents, Contents::default());
        assert_eq!(self.word(id, place), Ok(contents.at(place)), "{id}");
    }

    #[track_caller]
    fn expect_death_of(&mut self, act: &Act, killed: Vmm) {
        if let Some(id) = act.sandbox.clone().filter(|_| killed == Vmm::OfTheSandbox) {
            self.expect_dead(&id);
        }
    }

    /// The next command that uses a sandbox starts another supervisor.
    #[track_caller]
    fn expect_another_supervisor(&self, act: &Act) {
        let Some((id, sandbox)) = act.sandbox.as_ref().and_then(|id| self.sandboxes.get_key_value(id)) else { return };
        if sandbox.life == Life::Running {
            let found = self.word(id, Place::Disk);
            assert_eq!(found, Ok(sandbox.contents.disk), "{id}");
            self.check_supervised(id);
        }
    }
}

/// How long a step takes on a host that is neither fast nor idle.
fn first_guess(step: Step) -> Duration {
    Duration::from_millis(match step {
        Step::Create | Step::CreateSupervised | Step::CreateFromSnapshot | Step::Fork => 1500,
        Step::Reset | Step::ResetToSnapshot | Step::Write => 1000,
        Step::Snapshot => 250,
        _ => 30,
    })
}
