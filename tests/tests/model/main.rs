//! Random lives of sandboxes against a model of them: nothing that should be there is lost, nothing is there that should
//! not be, whatever is killed and whenever; and in the end everything can be removed.

mod kills;
mod served;
mod steps;
mod world;

use sandboxvm_tests::home::Home;
use std::env;
use world::World;

/// Kills in one home. A home starts with few sandboxes, and a seed repeats only what one home saw.
const KILLS_PER_LIFE: usize = 25;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// The seed of this run, which it prints: the same seed draws the same steps, as long as they have the same outcomes.
fn seed() -> u64 {
    let seed = number("SANDBOXVM_MODEL_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("SANDBOXVM_MODEL_SEED={seed}");
    seed
}

fn live(steps: usize) {
    let Some(home) = Home::with_kvm() else { return };
    let mut world = World::new(&home, seed());
    for _ in 0..steps {
        world.step();
    }
    world.end();
}

/// Lives with `kills` kills, and prints what was killed in the middle of what.
fn die(kills: usize) {
    let first = seed();
    let mut figures = kills::Figures::default();
    for life in 0.. {
        let wanted = KILLS_PER_LIFE.min(kills - figures.sum());
        if wanted == 0 {
            break;
        }
        let Some(home) = Home::with_kvm() else { return };
        let seed = first.wrapping_add(life);
        println!("--- life {life}: SANDBOXVM_MODEL_SEED={seed}");
        let mut world = World::new(&home, seed);
        while world.figures.sum() < wanted {
            world.step_with_kills();
        }
        figures.add(&world.figures);
        world.end();
        println!("--- {} of {kills} kills\n{figures}", figures.sum());
    }
}

#[test]
fn random_lives_are_as_the_model_says() {
    live(25);
}

/// `SANDBOXVM_MODEL_STEPS` says for how long.
#[test]
#[ignore = "soak: as long as asked"]
fn long_random_lives_are_as_the_model_says() {
    live(number("SANDBOXVM_MODEL_STEPS").map_or(400, |steps| usize::try_from(steps).expect("a number of steps")));
}

#[test]
fn every_process_can_be_killed_in_the_middle_of_a_step() {
    die(15);
}

/// `SANDBOXVM_MODEL_KILLS` says how often.
#[test]
#[ignore = "soak: a thousand kills, or as many as asked"]
fn a_thousand_kills_leave_what_the_model_says() {
    die(number("SANDBOXVM_MODEL_KILLS").map_or(1000, |kills| usize::try_from(kills).expect("a number of kills")));
}
