//! Ready snapshots that the tests share. A cold boot is the dearest thing there is where the guest's kernel is
//! interpreted, and nearly every test begins with the same kind of machine: it is booted once, in a home of its own, and
//! each test's home gets hard links to what that left to start from. A test that wants to see a boot says `--cold`.

use crate::artefacts::Artefacts;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

/// What a home keeps for all its sandboxes, and for any other home on this machine.
pub const SHARED: [&str; 3] = ["templates", "ready", "contents"];
/// Memory of the guests of most tests, in MiB: enough for Python, and less for a guest kernel to set up.
pub const SMALL: &str = "128M";
/// What stays of sandboxes that are gone.
pub const AUDIT: &str = "audit";

/// Where the seed is: on the file system of the tests' homes, since hard links do not leave one.
fn place() -> PathBuf {
    std::env::temp_dir().join(format!("sandboxvm-test-seed-{}", rustix::process::getuid().as_raw()))
}

/// Puts what is shared into `home`, which does not exist yet. Makes the seed first if there is none for these artefacts.
///
/// # Panics
/// When the seed cannot be made: then no sandbox can be either.
pub fn plant(home: &Path, artefacts: &Artefacts) {
    let seed = place();
    fs::create_dir_all(&seed).expect("the temporary directory can be written");
    let lock = File::create(seed.join("lock")).expect("the seed's directory is ours");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock can be waited for");
    let kind = describe(artefacts);
    if fs::read_to_string(seed.join("kind")).ok().as_deref() != Some(kind.as_str()) {
        let _ = fs::remove_dir_all(seed.join("home"));
        grow(&seed.join("home"), artefacts);
        fs::write(seed.join("kind"), kind).expect("the seed's directory is ours");
    }
    for name in SHARED {
        link_tree(&seed.join("home").join(name), &home.join(name));
    }
}

/// The files under test, each by path and version, and the boot of the host.
fn describe(artefacts: &Artefacts) -> String {
    let parts = ["sandboxvm-vmm", "vmlinux", "base.erofs", "agent.erofs"].map(|name| artefacts.part(name));
    let mut text = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("/proc is mounted");
    for path in parts.iter().chain([&artefacts.program]) {
        let version = fs::metadata(path).expect("what is under test exists");
        text += &format!("{} {} {} {}\n", path.display(), version.ino(), version.size(), version.mtime_nsec());
    }
    text
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
    assert!(made.status.success(), "the first run of all failed: {}", String::from_utf8_lossy(&made.stderr));
}

/// Hard links of all files below `from`, but for locks: a lock says who is at work in one home.
fn link_tree(from: &Path, to: &Path) {
    // As the manager makes them: whoever may enter the home owns every guest in it.
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
