//! A sandbox is snapshotted and forked without end: its chain of disk layers is merged when it is long, and nobody sees
//! the difference.

use rustix::process::Signal;
use sandboxvm_tests::{
    cli::Finished,
    home::{Home, SMALL, Sandbox},
};
use std::{fs, path::Path, time::Duration};

/// Frozen layers at which a chain is merged (manager/src/flatten.rs): this many snapshots do it.
const MAX_FROZEN: usize = 24;
/// Files of one snapshot that a sandbox was made from, those of its chain, and its top.
const MOST_FILES: usize = 1 + MAX_FROZEN + 2;

/// Names of the disk layers in a directory.
fn layers(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory is there").flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("disk.")).collect()
}

fn frozen_layers(home: &Home, snapshot: &str) -> usize {
    layers(&home.path().join("snapshots").join(snapshot)).len()
}

/// The hash of the one file, as the disk has it: the page cache, which a snapshot keeps too, is left out.
const SUM: &str = "dd if=/root/all iflag=direct bs=1M 2>/dev/null | sha256sum";

/// Writes blocks of the file, some that an earlier layer has and some new ones. Returns its hash after.
fn write(sandbox: &Sandbox<'_>, n: usize) -> String {
    let blocks = format!("bs=16k seek={} count=5 conv=notrunc,fsync", 3 * n);
    sum(sandbox, &format!("dd if=/dev/urandom of=/root/all {blocks} 2>/dev/null && {SUM}"))
}

fn sum(sandbox: &Sandbox<'_>, script: &str) -> String {
    let run = sandbox.sh(script).succeeds();
    let empty = run.out().starts_with("e3b0c44298fc1c149afbf4c8996fb924");
    assert!(run.out().ends_with("  -\n") && !empty, "{}", run.transcript());
    run.out()
}

struct Chain<'h> {
    home: &'h Home,
    sandbox: Sandbox<'h>,
    taken: usize,
}

impl Chain<'_> {
    fn name(n: usize) -> String {
        format!("s{n}")
    }

    /// Takes a snapshot; true when the chain was merged for it.
    fn snapshot(&mut self) -> bool {
        let before = layers(&self.sandbox.directory()).len();
        let _ = self.home.cli(["snapshot", "create", "long", &Self::name(self.taken)]).run().succeeds();
        self.taken += 1;
        let after = layers(&self.sandbox.directory()).len();
        assert!(after <= MOST_FILES, "{after} layers are in the sandbox's directory");
        let frozen = frozen_layers(self.home, &Self::name(self.taken - 1));
        assert!(frozen <= MAX_FROZEN + 1, "snapshot {} has {frozen} layers", self.taken - 1);
        after < before
    }

    /// Takes snapshots until the next one would merge the chain.
    fn lengthen(&mut self) {
        while frozen_layers(self.home, &Self::name(self.taken - 1)) <= MAX_FROZEN {
            assert!(!self.snapshot(), "merged early: before snapshot {}", self.taken - 1);
        }
    }
}

/// The files of a sandbox made of snapshot `n`.
fn restored(home: &Home, n: usize) -> String {
    let sandbox = home.create(&["--from", &Chain::name(n)]);
    let found = sum(&sandbox, SUM);
    sandbox.remove();
    found
}

#[test]
fn a_sandbox_is_snapshotted_and_forked_without_end() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "long"]);
    let mut chain = Chain { home: &home, sandbox: sandbox.clone(), taken: 0 };

    // Written under the chain, in its middle, and, below, at its end.
    let _ = write(&sandbox, 0);
    let _ = chain.snapshot();
    while chain.taken < MAX_FROZEN / 2 {
        let _ = chain.snapshot();
    }
    let early = write(&sandbox, 1);
    let _ = chain.snapshot();
    let early_snapshot = chain.taken - 1;
    chain.lengthen();
    // Whoever asks is killed, at whatever it is doing: the chain is the old one or the new one, and works.
    let delays = [2, 6, 12, 20, 30, 45, 70];
    for (round, delay) in delays.into_iter().enumerate() {
        let asked = home.cli(["snapshot", "create", "long", &format!("killed{round}")]).spawn();
        std::thread::sleep(Duration::from_millis(delay));
        asked.signal(Signal::KILL);
        let _: Finished = asked.finish();
        // One more may be there that was merged and is not used: the next change takes it away.
        let files = layers(&sandbox.directory()).len();
        assert!(files <= MOST_FILES + 2, "{files} layers after {delay} ms");
    }
    let late = write(&sandbox, 2);
    let _ = chain.snapshot();
    let late_snapshot = chain.taken - 1;
    let frozen = frozen_layers(&home, &Chain::name(late_snapshot));
    assert!(frozen <= 2 + delays.len(), "the chain was not merged: {frozen} layers");

    // A fork does it too, and its copies have what was there.
    chain.lengthen();
    let forked = home.cli(["fork", "long"]).deadline(Duration::from_secs(120)).run().succeeds();
    let copy = Sandbox::called(&home, forked.out().trim());
    assert_eq!(layers(&copy.directory()).len(), 2 + 1, "the merged layer, the top that was, and its own");
    assert_eq!(sum(&copy, SUM), late);
    copy.remove();
    // What is merged goes on being read and written, and kept.
    let last = write(&sandbox, 3);
    assert!(!chain.snapshot());
    let last_snapshot = chain.taken - 1;
    sandbox.remove();

    // Snapshots need no sandbox and not each other.
    for n in 0..chain.taken {
        if ![early_snapshot, late_snapshot, last_snapshot].contains(&n) {
            let _ = home.cli(["snapshot", "rm", &Chain::name(n)]).run().succeeds();
        }
    }
    assert_eq!(restored(&home, early_snapshot), early);
    assert_eq!(restored(&home, late_snapshot), late);
    assert_eq!(restored(&home, last_snapshot), last);
}
