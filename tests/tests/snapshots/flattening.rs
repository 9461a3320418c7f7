//! A sandbox that is snapshotted and forked again and again merges its chain of disk layers when it
//! is long, and its files stay the same.

use rustix::process::Signal;
use sandboxvm_tests::{
    cli::Finished,
    home::{Home, SMALL, Sandbox},
};
use std::{fs, path::Path, time::Duration};

/// Number of frozen layers at which a chain is merged (manager/src/flatten.rs). As many snapshots
/// reach it.
const MAX_FROZEN: usize = 24;
/// Maximum number of layer files of a sandbox: one of the snapshot it was created from, its chain,
/// and its top layer.
const MOST_FILES: usize = 1 + MAX_FROZEN + 2;

/// Returns the names of the disk layers in a directory.
fn layers(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory is there").flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("disk.")).collect()
}

fn frozen_layers(home: &Home, snapshot: &str) -> usize {
    layers(&home.path().join("snapshots").join(snapshot)).len()
}

/// Prints the hash of the file as the disk has it. It bypasses the page cache, which a snapshot
/// contains too.
const SUM: &str = "dd if=/root/all iflag=direct bs=1M 2>/dev/null | sha256sum";

/// Overwrites some blocks of the file and appends new ones. Returns the hash of the file
/// afterwards.
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

    /// Takes a snapshot. Returns whether the chain was merged for it.
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

    /// Takes snapshots until the next one will merge the chain.
    fn lengthen(&mut self) {
        while frozen_layers(self.home, &Self::name(self.taken - 1)) <= MAX_FROZEN {
            assert!(!self.snapshot(), "merged early: before snapshot {}", self.taken - 1);
        }
    }
}

/// Returns the hash of the file in a sandbox restored from snapshot `n`.
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

    // The file is written below the chain, in its middle and, further down, at its end.
    let _ = write(&sandbox, 0);
    let _ = chain.snapshot();
    while chain.taken < MAX_FROZEN / 2 {
        let _ = chain.snapshot();
    }
    let early = write(&sandbox, 1);
    let _ = chain.snapshot();
    let early_snapshot = chain.taken - 1;
    chain.lengthen();
    // The command is killed at various moments. The chain is then the old one or the merged one,
    // and works.
    let delays = [2, 12, 30, 70];
    for (round, delay) in delays.into_iter().enumerate() {
        let asked = home.cli(["snapshot", "create", "long", &format!("killed{round}")]).spawn();
        std::thread::sleep(Duration::from_millis(delay));
        asked.signal(Signal::KILL);
        let _: Finished = asked.finish();
        // There may be one more layer that was merged and is not used. The next change removes it.
        let files = layers(&sandbox.directory()).len();
        assert!(files <= MOST_FILES + 2, "{files} layers after {delay} ms");
    }
    let late = write(&sandbox, 2);
    let _ = chain.snapshot();
    let late_snapshot = chain.taken - 1;
    let frozen = frozen_layers(&home, &Chain::name(late_snapshot));
    assert!(frozen <= 2 + delays.len(), "the chain was not merged: {frozen} layers");

    // A fork also merges the chain, and its copies have the same files.
    chain.lengthen();
    let forked = home.cli(["fork", "long"]).deadline(Duration::from_secs(120)).run().succeeds();
    let copy = Sandbox::called(&home, forked.out().trim());
    assert_eq!(layers(&copy.directory()).len(), 2 + 1, "the merged layer, the former top layer, and the fork's own");
    assert_eq!(sum(&copy, SUM), late);
    copy.remove();
    // The merged layer can be read, written above and snapshotted.
    let last = write(&sandbox, 3);
    assert!(!chain.snapshot());
    let last_snapshot = chain.taken - 1;
    sandbox.remove();

    // Snapshots depend neither on the sandbox nor on each other.
    for n in 0..chain.taken {
        if ![early_snapshot, late_snapshot, last_snapshot].contains(&n) {
            let _ = home.cli(["snapshot", "rm", &Chain::name(n)]).run().succeeds();
        }
    }
    assert_eq!(restored(&home, early_snapshot), early);
    assert_eq!(restored(&home, late_snapshot), late);
    assert_eq!(restored(&home, last_snapshot), last);
}
