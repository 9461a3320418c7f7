//! Runs every fuzz target on its corpus and on mutations of it, as libFuzzer does for much longer.
//! The mutations are the same in every run unless `SANDBOXVM_FUZZ_SEED` is set.
//! `SANDBOXVM_FUZZ_ROUNDS` sets their number.

use sandboxvm_fuzz_targets::{TARGETS, Target, state_file_example};
use std::{env, fs, panic, path::PathBuf};

/// Number of mutations for each target.
const ROUNDS: u32 = 1500;
/// Maximum length of a mutation, unless the corpus has longer inputs.
const LONGEST: usize = 2048;

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.expect("the corpus can be read").path());
    // libFuzzer names its own inputs by their hash. There may be very many of them.
    let is_kept = |path: &PathBuf| path.file_name().is_some_and(|name| name.len() != 40);
    let mut corpus: Vec<_> = paths
        .filter(is_kept)
        .map(|path| (path.display().to_string(), fs::read(&path).expect("the corpus can be read")))
        .collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "{} is empty", directory.display());
    corpus
}

fn stated(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn mutate(random: &mut fastrand::Rng, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = corpus[random.usize(..corpus.len())].1.clone();
    for _ in 0..random.u32(1..8) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 if at < bytes.len() => bytes[at] = random.choice([0, 1, 0x7f, 0x80, 0xff]).unwrap_or(0),
            2 => bytes.insert(at, random.u8(..)),
            3 if at < bytes.len() => drop(bytes.drain(at..(at + random.usize(1..9)).min(bytes.len()))),
            4 => {
                let other = &corpus[random.usize(..corpus.len())].1;
                let (from, count) = (random.usize(..=other.len()), random.usize(..64));
                bytes.splice(at..at, other[from..].iter().copied().take(count));
            }
            _ => bytes.extend((0..random.usize(..24)).map(|_| random.u8(..))),
        }
    }
    bytes.truncate(LONGEST.max(corpus.iter().map(|(_, entry)| entry.len()).max().unwrap_or(0)));
    bytes
}

fn try_out(target: &Target) {
    let corpus = corpus(target);
    for (name, bytes) in &corpus {
        panic::catch_unwind(|| (target.run)(bytes)).unwrap_or_else(|_| panic!("{name} fails"));
    }
    let seed = stated("SANDBOXVM_FUZZ_SEED", 1);
    let rounds = stated("SANDBOXVM_FUZZ_ROUNDS", ROUNDS.into());
    println!("SANDBOXVM_FUZZ_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..rounds {
        let bytes = mutate(&mut random, &corpus);
        panic::catch_unwind(|| (target.run)(&bytes)).unwrap_or_else(|_| {
            let path = env::temp_dir().join(format!("sandboxvm-{}-{seed}-{round}", target.name));
            fs::write(&path, &bytes).expect("the temporary directory can be written");
            panic!("{} fails in round {round} of seed {seed}; its input is {}", target.name, path.display())
        });
    }
}

macro_rules! replay {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                let target = TARGETS.iter().find(|target| target.name == stringify!($name));
                try_out(target.expect("one of the targets"));
            }
        )*
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

replay!(
    balloon_device,
    block_device,
    connection_opening,
    disk_layers,
    dns_answer,
    dns_query,
    dockerfile,
    egress_frames,
    frame_decode,
    image_archive,
    image_configuration,
    image_manifest,
    image_metadata,
    image_reference,
    layer_archive,
    layer_changes,
    net_device,
    rng_device,
    serial_console,
    share_requests,
    snapshot_metadata,
    state_file,
    tar_unpack,
    virtqueue,
    vsock_device,
    workspace_changes
);

#[test]
fn every_target_is_replayed_and_has_a_program() {
    for target in TARGETS {
        assert!(REPLAYED.contains(&target.name), "{} is not replayed", target.name);
        let program = format!("{}/../../fuzz/fuzz_targets/{}.rs", env!("CARGO_MANIFEST_DIR"), target.name);
        assert!(fs::exists(&program).is_ok_and(|exists| exists), "{program} is missing");
    }
    assert_eq!(REPLAYED.len(), TARGETS.len());
}

/// The examples in the corpus are states of the current devices. UPDATE_GOLDEN=1 writes them again.
#[test]
fn examples_of_device_states_are_current() {
    for (kind, name) in [(1, "net"), (2, "block"), (4, "rng"), (5, "balloon"), (19, "vsock")] {
        let path = format!("{}/../../fuzz/corpus/state_file/device-{name}", env!("CARGO_MANIFEST_DIR"));
        let example = state_file_example(kind);
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &example).expect("the corpus can be written");
        }
        let kept = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; run with UPDATE_GOLDEN=1"));
        assert!(kept == example, "{path} is not the state that the device saves; run with UPDATE_GOLDEN=1");
    }
}
