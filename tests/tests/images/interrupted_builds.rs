//! Builds that are killed, and builds on a full disk: nothing is corrupt, and nothing is left after the
//! next build and `prune`.

use crate::{registry, small_image};
use rustix::process::Signal;
use sandboxvm_tests::home::{Home, SMALL};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Size of the file that builds copy. It is compressed three times.
const SIZE: usize = 1 << 20;

/// Numbers for the moments of kills. They are printed, since another run has others.
struct Numbers(u64);

impl Numbers {
    fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        println!("seed {seed}");
        Self(u64::from(seed) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn context(home: &Home, dockerfile: &str) -> PathBuf {
    let context = home.scratch("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let mut numbers = Numbers(7);
    let data: Vec<u8> = (0..SIZE / 8).flat_map(|_| numbers.next().to_le_bytes()).collect();
    fs::write(context.join("data"), data).unwrap();
    context
}

/// Kills builds at random moments of the time that one takes, then builds once more.
fn kill_builds(home: &Home, build: &[&str], rounds: u32, longest: Duration) {
    let mut numbers = Numbers::new();
    let longest = u64::try_from(longest.as_millis()).unwrap().max(1);
    for _ in 0..rounds {
        let mut running = home.cli(build).spawn();
        let moment = Instant::now() + Duration::from_millis(numbers.next() % longest);
        while Instant::now() < moment && !running.has_ended() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // The number of a process that has ended may be another's.
        if !running.has_ended() {
            running.signal(Signal::KILL);
        }
        drop(running.finish());
        home.cli(["image", "ls"]).run().succeeds();
    }
    home.cli(build).run().succeeds();
    let unfinished = fs::read_dir(home.path().join("build")).unwrap().flatten();
    let unfinished: Vec<_> = unfinished.filter(|entry| entry.path().is_file()).collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
    // skopeo verifies every digest.
    let (saved, copied) = (home.scratch("app.tar"), home.scratch("copied"));
    home.cli(["image", "save", "app", "-o", saved.to_str().unwrap()]).run().succeeds();
    let (from, to) = (format!("oci-archive:{}", saved.display()), format!("dir:{}", copied.display()));
    registry::run("skopeo", &["copy", &from, &to]);
}

fn remove_all(home: &Home) {
    home.cli(["prune"]).run().succeeds();
    let states = home.cli(["snapshot", "ls", "-q"]).run().succeeds().out();
    if !states.is_empty() {
        home.cli(["snapshot", "rm"].into_iter().chain(states.lines())).run().succeeds();
    }
    home.cli(["image", "prune", "--all"]).run().succeeds();
    home.assert_nothing_left();
}

#[test]
fn builds_that_are_killed_leave_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let context = context(&home, "FROM scratch\nCOPY data /a\nCOPY data /b\nWORKDIR /c\nADD data ./\n");
    let build = ["build", "-t", "app", context.to_str().unwrap()];
    let begin = Instant::now();
    home.cli(build).run().succeeds();
    let longest = begin.elapsed();
    home.cli(["image", "rm", "app"]).run().succeeds();
    kill_builds(&home, &[&build[..], &["--no-cache"]].concat(), 6, longest);
    remove_all(&home);
}

#[test]
#[ignore = "soak: a guest runs in each of twelve builds"]
fn builds_that_are_killed_in_a_run_leave_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let layout = small_image(&home);
    home.cli(["image", "load", "-i", layout.to_str().unwrap(), "--name", "example.test/base:1"]).run().succeeds();
    let text = "FROM example.test/base:1\nUSER root\nRUN wc -c /etc/passwd >/count\nCOPY data /a\nRUN rm /a\n";
    let context = context(&home, text);
    let build = ["build", "-m", SMALL, "--disk", "256M", "--no-cache", "-t", "app", context.to_str().unwrap()];
    let begin = Instant::now();
    home.cli(build).run().succeeds();
    kill_builds(&home, &build, 12, begin.elapsed());
    remove_all(&home);
}

/// A tmpfs, which is unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs"];
        let done = Command::new("mount").args(options).arg(at).status().expect("mount(8) can be executed");
        assert!(done.success(), "cannot mount a tmpfs: these tests need root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_build_on_a_full_disk_says_so_and_leaves_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let disk = SmallDisk::mount(&home.scratch("disk"));
    let context = context(&home, "FROM scratch\nCOPY data /a\n");
    let mut large = File::options().append(true).open(context.join("data")).unwrap();
    let run = |arguments: &[&str]| home.cli(arguments).env("SANDBOXVM_HOME", disk.0.join("home")).run();
    let build = ["build", "-t", "app", context.to_str().unwrap()];
    let files = || {
        let output =
            Command::new("find").arg(disk.0.join("home")).args(["-type", "f", "-size", "+64k"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    large.write_all(&fs::read(context.join("data")).unwrap().repeat(2)).unwrap();
    run(&build).fails_with(&["No space left on device"]);
    assert_eq!(files(), "", "a failed build left files");
    assert_eq!(run(&["image", "ls", "-q"]).succeeds().out(), "");
    // A smaller one has room.
    large.set_len(SIZE as u64 / 2).unwrap();
    run(&build).succeeds();
    run(&["image", "prune", "--all"]).succeeds();
    assert_eq!(files(), "");
}
