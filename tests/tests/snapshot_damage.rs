//! Snapshots that meet a damaged file or a full disk: what is no good is refused by the name of what is wrong with it,
//! and what was there before is as it was.

use sandboxvm_tests::{
    home::{Home, SMALL},
    processes,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Changes one file of a snapshot, on a copy: the file itself is shared.
fn spoil(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = fs::read(path).expect("a file of the snapshot");
    change(&mut content);
    fs::remove_file(path).expect("a file of the snapshot");
    fs::write(path, content).expect("the snapshot's directory");
}

#[test]
fn a_damaged_snapshot_is_refused_by_name_of_the_damage() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    home.snapshot(&sandbox.id, "good");
    sandbox.remove();
    let good = home.path().join("snapshots/good");
    let refused = |name: &str, file: &str, hints: &[&str], change: &dyn Fn(&Path)| {
        let copy = home.path().join("snapshots").join(name);
        let copied = Command::new("cp").args(["-al"]).args([&good, &copy]).status().expect("cp");
        assert!(copied.success());
        change(&copy.join(file));
        // What can be seen without reading files that have not changed, a listing says.
        let shown = match name {
            "memory" | "layer" | "state" => "is damaged",
            "manifest" | "format" => "cannot list snapshot",
            _ => "",
        };
        let listed = home.cli(["snapshot", "ls"]).run().succeeds();
        assert!(listed.err().contains(shown), "{}", listed.transcript());
        for command in [&["create", "--from", name][..], &["run", "--from", name, "--", "true"]] {
            let _ = home.cli(command).run().fails_with(hints);
        }
        let _ = home.cli(["snapshot", "rm", name]).run().succeeds();
        assert!(home.listed().is_empty(), "{name} left a sandbox");
    };
    // As by an older build, whose snapshots have no seals: the VMM refuses what it cannot read.
    let unsealed = |name: &str, file: &str, hints: &[&str], change: &dyn Fn(&Path)| {
        refused(name, file, hints, &|path| {
            change(path);
            spoil(&path.with_file_name("manifest.json"), |bytes| {
                let mut manifest: Value = serde_json::from_slice(bytes).expect("JSON");
                manifest.as_object_mut().expect("an object").remove("seals").expect("it has seals");
                *bytes = serde_json::to_vec(&manifest).expect("JSON");
            });
        });
    };
    unsealed("flipped", "state", &["damaged", "checksum"], &|path| spoil(path, |bytes| bytes[200] ^= 1));
    unsealed("header", "state", &["damaged", "checksum"], &|path| spoil(path, |bytes| bytes[17] ^= 1));
    unsealed("cut", "state", &["truncated"], &|path| spoil(path, |bytes| bytes.truncate(bytes.len() / 2)));
    unsealed("empty", "state", &["truncated"], &|path| spoil(path, Vec::clear));
    unsealed("other", "state", &["not a sandboxvm snapshot"], &|path| spoil(path, |bytes| bytes[0] = b'X'));
    unsealed("newer", "state", &["version 99"], &|path| spoil(path, |bytes| bytes[8] = 99));
    refused("memory", "memory.0", &["truncated"], &|path| {
        let shorter = path.with_extension("short");
        fs::File::create(&shorter).and_then(|file| file.set_len(1 << 20)).expect("a new file");
        fs::rename(shorter, path).expect("the snapshot's directory");
    });
    let changed = |file| ["changed since it was created", file];
    let flip = |bytes: &mut Vec<u8>| {
        let at = bytes.iter().rposition(|byte| *byte != 0).expect("memory is not empty");
        bytes[at] ^= 1;
    };
    refused("bit", "memory.0", &changed("memory.0"), &|path| spoil(path, flip));
    refused("layer", "disk.0", &changed("disk.0"), &|path| spoil(path, |bytes| bytes[20] ^= 1));
    refused("state", "state", &changed("state"), &|path| spoil(path, |bytes| bytes[200] ^= 1));
    unsealed("unsealed", "disk.0", &["disk layer"], &|path| spoil(path, |bytes| bytes[20] ^= 1));
    refused("manifest", "manifest.json", &["manifest.json", "damaged"], &|path| spoil(path, |bytes| bytes.truncate(9)));
    refused("format", "manifest.json", &["format 99"], &|path| {
        spoil(path, |bytes| {
            *bytes = String::from_utf8_lossy(bytes).replacen("\"format\": 1", "\"format\": 99", 1).into()
        });
    });
    refused("host", "manifest.json", &["host mode"], &|path| {
        spoil(path, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let mode = if text.contains("\"mode\": \"svm\"") { "vmx" } else { "svm" };
            let at = text.find("\"mode\": \"").expect("a mode") + 9;
            bytes.splice(at..at + 3, mode.bytes());
        });
    });
    refused("image", "manifest.json", &["base image"], &|path| {
        spoil(path, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let image = text.find("\"image\"").expect("an image");
            let at = image + text[image..].find("\"sha256\": \"").expect("its hash") + 11;
            bytes.splice(at..at + 4, *b"ffff");
        });
    });
    // What changed and left its time as it was is found when looked for.
    assert_eq!(home.cli(["snapshot", "verify"]).run().succeeds().out(), "good\n");
    let bad = good.with_file_name("bad");
    assert!(Command::new("cp").arg("-al").args([&good, &bad]).status().expect("cp").success());
    let memory = bad.join("memory.0");
    let time = fs::metadata(&memory).and_then(|memory| memory.modified()).expect("a file's time");
    spoil(&memory, flip);
    fs::File::options().append(true).open(&memory).and_then(|file| file.set_modified(time)).expect("a file of ours");
    let verified = home.cli(["snapshot", "verify", "good", "bad"]).run().exits(125);
    assert_eq!(verified.out(), "good\n");
    assert!(changed("memory.0").iter().all(|hint| verified.err().contains(hint)), "{}", verified.transcript());
    let _ = home.cli(["snapshot", "rm", "bad"]).run().succeeds();
    // A copy has another time and goes on all the same.
    let copy = good.with_file_name("copy");
    assert!(Command::new("cp").arg("-r").args([&good, &copy]).status().expect("cp").success());
    let restored = home.create(&["--from", "copy"]);
    let _ = restored.sh("true").succeeds();
    restored.remove();
    let _ = home.cli(["snapshot", "rm", "copy"]).run().succeeds();
    // The original is as it was.
    let restored = home.create(&["--from", "good"]);
    let _ = restored.sh("true").succeeds();
    restored.remove();
    home.remove_snapshots();
    home.assert_nothing_left();
}

/// A ready snapshot is ours to make: one that is no good is made again, and nobody hears of it.
#[test]
fn a_damaged_ready_snapshot_is_made_again() {
    let Some(home) = Home::with_kvm() else { return };
    let states = || -> Vec<PathBuf> {
        let ready = fs::read_dir(home.path().join("ready")).into_iter().flatten().flatten();
        ready.map(|entry| entry.path().join("state")).filter(|path| path.exists()).collect()
    };
    let _ = home.cli(["run", "-m", SMALL, "--", "true"]).run().succeeds();
    for file in ["state", "memory.0"] {
        let [state] = &states()[..] else { panic!("one kind of machine, one ready snapshot: {:?}", states()) };
        spoil(&state.with_file_name(file), |bytes| bytes[100] ^= 1);
        let spoiled = fs::read(state).expect("a state file");
        let run = home.cli(["run", "-m", SMALL, "--", "echo", "fine"]).deadline(Duration::from_secs(240)).run();
        assert_eq!(run.succeeds().out(), "fine\n");
        let [state] = &states()[..] else { panic!("one again: {:?}", states()) };
        assert_ne!(fs::read(state).expect("a state file"), spoiled, "{file}");
    }
    home.assert_nothing_left();
}

/// A small file system of the test's own, taken away when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, size: &str) -> Self {
        fs::create_dir(&at).expect("a new directory");
        let options = format!("size={size},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status();
        assert!(mounted.expect("mount").success(), "a tmpfs cannot be mounted; the tests run as root");
        Self(at)
    }

    /// Leaves `bytes` of room.
    fn fill_but(&self, bytes: u64) -> PathBuf {
        let room = rustix::fs::statvfs(&self.0).expect("a file system");
        let len = (room.f_bavail * room.f_frsize).saturating_sub(bytes);
        let path = self.0.join("ballast");
        let file = fs::File::create(&path).expect("room for a file");
        let block = vec![1u8; 1 << 20];
        for at in (0..len).step_by(block.len()) {
            let part = usize::try_from((len - at).min(1 << 20)).expect("at most a MiB");
            file.write_all_at(&block[..part], at).expect("there was room");
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // After a failure; once unmounted, nobody can tell what they hold.
        processes::kill_all_of(&self.0);
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_fails_the_snapshot_and_nothing_else() {
    let Some(home) = Home::with_kvm() else { return };
    let disk = SmallDisk::mount(home.scratch("small"), "600M");
    let place = disk.0.join("home");
    let cli =
        |arguments: &[&str]| home.cli(arguments).env("SANDBOXVM_HOME", &place).env("SANDBOXVM_MIN_FREE_DISK", "0");
    let created = cli(&["create", "-m", SMALL, "--name", "full"]).deadline(Duration::from_secs(240)).run().succeeds();
    let sh = |script: &str| cli(&["exec", "full", "--", "sh", "-c", script]).run();
    let _ = sh("seq 500000 > /dev/shm/big; echo before > /root/file").succeeds();
    for room in [1 << 20, 64 << 10, 0] {
        let ballast = disk.fill_but(room);
        let _ = cli(&["snapshot", "create", "full", "none"]).run().fails_with(&["No space left"]);
        assert_eq!(cli(&["snapshot", "ls", "-q"]).run().succeeds().out(), "");
        for part in ["staging", "trash", "snapshots"] {
            assert_eq!(fs::read_dir(place.join(part)).expect("a part of the home").count(), 0, "{part}, room {room}");
        }
        fs::remove_file(ballast).expect("our own file");
        assert_eq!(sh("cat /root/file").succeeds().out(), "before\n");
    }
    // With room it works, and what was written before and after is there.
    let _ = sh("echo after >> /root/file").succeeds();
    let _ = cli(&["snapshot", "create", "full", "some"]).run().succeeds();
    let _ = cli(&["rm", "-f", created.out().trim()]).run().succeeds();
    let restored = cli(&["run", "--from", "some", "--", "sh", "-c", "cat /root/file; tail -n 1 /dev/shm/big"]).run();
    assert_eq!(restored.succeeds().out(), "before\nafter\n500000\n");
    let _ = cli(&["snapshot", "rm", "some"]).run().succeeds();
    sandboxvm_tests::leaks::assert_nothing_left(&place);
}
