//! Ready snapshots that the tests share. A cold boot is the most expensive operation if the guest's
//! kernel is interpreted, and nearly every test uses the same kind of machine. So it boots once, in
//! a separate home, and the home of each test gets hard links to its ready snapshot. A test that
//! needs a boot uses `--cold`.

use crate::artefacts::Artefacts;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

/// Directories of a home that another home on this host can use too.
pub const SHARED: [&str; 3] = ["templates", "ready", "contents"];
/// Memory of most guests in tests: enough for Python, and less work for the guest kernel than more
/// memory.
pub const SMALL: &str = "128M";
/// The directory of the logs of sandboxes, which outlive them.
pub const AUDIT: &str = "audit";

/// Returns the directory of the seed. It is on the file system of the tests' homes, so that hard
/// links are possible.
fn place() -> PathBuf {
    std::env::temp_dir().join(format!("sandboxvm-test-seed-{}", rustix::process::getuid().as_raw()))
}

/// Links the shared files into `home`, which must not exist yet. Creates the seed first if there is
/// none for these artefacts.
///
/// # Panics
/// Panics if the seed cannot be created, because then no sandbox can be created either.
pub fn plant(home: &Path, artefacts: &Artefacts) {
    let seed = place();
    fs::create_dir_all(&seed).expect("the temporary directory can be written");
    let lock = File::create(seed.join("lock")).expect("the seed's directory can be written");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock can be waited for");
    let kind = describe(artefacts);
    if fs::read_to_string(seed.join("kind")).ok().as_deref() != Some(kind.as_str()) {
        let _ = fs::remove_dir_all(seed.join("home"));
        grow(&seed.join("home"), artefacts);
        fs::write(seed.join("kind"), kind).expect("the seed's directory can be written");
    }
    for name in SHARED {
        link_tree(&seed.join("home").join(name), &home.join(name));
    }
}

/// Returns the files under test, each with path and version, and the boot ID of the host.
fn describe(artefacts: &Artefacts) -> String {
    let parts = ["sandboxvm-vmm", "vmlinux", "base.erofs", "agent.erofs"].map(|name| artefacts.part(name));
    let mut text = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("/proc is mounted");
    for path in parts.iter().chain([&artefacts.program]) {
        let version = fs::metadata(path).expect("the file under test exists");
        text += &format!("{} {} {} {}\n", path.display(), version.ino(), version.size(), version.mtime_nsec());
    }
    text
}

/// Copies `home`, with the shared files in it, to a file system that may become full.
///
/// The memory files of ready snapshots get all their blocks. A guest that uses a page for the first
/// time reads it from the file, and a tmpfs allocates a block for a hole that is read through a
/// mapping: without room, that ends the VMM (docs/design/limits.md).
pub fn copy(home: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([home, to]).status();
    assert!(copied.expect("cp(1) can be executed").success());
    for snapshot in fs::read_dir(to.join("ready")).expect("the seed has one").flatten() {
        for file in fs::read_dir(snapshot.path()).into_iter().flatten().flatten() {
            if file.file_name().as_encoded_bytes().starts_with(b"memory") {
                let length = file.metadata().expect("the file exists").len();
                let file = File::options().write(true).open(file.path()).expect("root may write it");
                fallocate(&file, FallocateFlags::empty(), 0, length).expect("the file system has room");
            }
        }
    }
}

fn grow(home: &Path, artefacts: &Artefacts) {
    let made = Command::new(&artefacts.program)
        .args(["run", "-m", SMALL, "--", "true"])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("SANDBOXVM_HOME", home)
        .env("SANDBOXVM_BUNDLE", &artefacts.bundle)
        .output()
        .expect("the program under test can be executed");
    assert!(made.status.success(), "the run that creates the seed failed: {}", String::from_utf8_lossy(&made.stderr));
}

/// Links all files below `from`, except locks, which belong to one home.
fn link_tree(from: &Path, to: &Path) {
    // The same mode as the manager uses, because every user who may enter a home controls its
    // guests.
    DirBuilder::new().recursive(true).mode(0o700).create(to).expect("the home can be written");
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            link_tree(&source, &target);
        } else if source.extension().is_none_or(|extension| extension != "lock") && entry.file_name() != "lock" {
            fs::hard_link(&source, &target).expect("seed and home are on one file system");
        }
    }
}
