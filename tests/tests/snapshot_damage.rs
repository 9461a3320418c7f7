//! Snapshots that meet a damaged file or a full disk: what is no good is refused by the name of what is wrong with it,
//! and what was there before is as it was.

use sandboxvm_tests::{
    home::{Home, SMALL},
    processes,
};
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
        for command in [&["create", "--from", name][..], &["run", "--from", name, "--", "true"]] {
            let _ = home.cli(command).run().fails_with(hints);
        }
        let _ = home.cli(["snapshot", "rm", name]).run().succeeds();
        assert!(home.listed().is_empty(), "{name} left a sandbox");
    };
    refused("flipped", "state", &["damaged", "checksum"], &|path| spoil(path, |bytes| bytes[200] ^= 1));
    refused("header", "state", &["damaged", "checksum"], &|path| spoil(path, |bytes| bytes[17] ^= 1));
    refused("cut", "state", &["truncated"], &|path| spoil(path, |bytes| bytes.truncate(bytes.len() / 2)));
    refused("empty", "state", &["truncated"], &|path| spoil(path, Vec::clear));
    refused("other", "state", &["not a sandboxvm snapshot"], &|path| spoil(path, |bytes| bytes[0] = b'X'));
    refused("newer", "state", &["version 99"], &|path| spoil(path, |bytes| bytes[8] = 99));
    refused("memory", "memory.0", &["truncated"], &|path| {
        let shorter = path.with_extension("short");
        fs::File::create(&shorter).and_then(|file| file.set_len(1 << 20)).expect("a new file");
        fs::rename(shorter, path).expect("the snapshot's directory");
    });
    refused("layer", "disk.0", &["disk layer"], &|path| spoil(path, |bytes| bytes[20] ^= 1));
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
    let [state] = &states()[..] else { panic!("one kind of machine, one ready snapshot: {:?}", states()) };
    spoil(state, |bytes| bytes[100] ^= 1);
    let spoiled = fs::read(state).expect("a state file");
    let run = home.cli(["run", "-m", SMALL, "--", "echo", "fine"]).deadline(Duration::from_secs(240)).run().succeeds();
    assert_eq!(run.out(), "fine\n");
    let [state] = &states()[..] else { panic!("one again: {:?}", states()) };
    assert_ne!(fs::read(state).expect("a state file"), spoiled);
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
