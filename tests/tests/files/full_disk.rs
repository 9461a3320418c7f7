//! A home on a file system with little or no room. What does not fit is refused with that reason,
//! no sandbox ends, and each stays as it was. A program that cannot write its log does not panic.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use sandboxvm_tests::{
    cli::Finished,
    home::{Home, SMALL, eventually},
    host::processes,
    seed,
};
use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

/// The file that occupies the rest.
const FILLER: &str = "filler";

/// A tmpfs with a home, and with the files that all homes of the tests share.
struct SmallDisk<'h> {
    home: &'h Home,
    mounted: PathBuf,
}

impl<'h> SmallDisk<'h> {
    fn mount(home: &'h Home) -> Self {
        let mounted = home.scratch("disk");
        fs::create_dir(&mounted).expect("the test may create a directory");
        let options = ["-t", "tmpfs", "-o", "size=700m,mode=0700", "tmpfs"];
        let done = Command::new("mount").args(options).arg(&mounted).status().expect("mount(8) can be executed");
        assert!(done.success(), "cannot mount a tmpfs: these tests need root");
        let disk = Self { home, mounted };
        seed::copy(&home.path(), &disk.root());
        disk
    }

    fn root(&self) -> PathBuf {
        self.mounted.join("home")
    }

    /// Runs the CLI without the floor for free space, which would refuse nearly everything before
    /// it starts.
    fn run(&self, arguments: &[&str]) -> Finished {
        let invocation = self.home.cli(arguments).env("SANDBOXVM_HOME", self.root());
        invocation.env("SANDBOXVM_MIN_FREE_DISK", "0").run()
    }

    fn left(&self) -> u64 {
        let room = statvfs(&self.mounted).expect("the tmpfs is mounted");
        room.f_bavail * room.f_frsize
    }

    /// Leaves `bytes` bytes free.
    fn leave(&self, bytes: u64) {
        self.make_room();
        let file = File::create(self.mounted.join(FILLER)).expect("a new file");
        let mut length = 0;
        // Repeats until the number is right, as other processes write and remove files meanwhile.
        while let Some(more) = self.left().checked_sub(bytes).filter(|more| *more > 0) {
            if fallocate(&file, FallocateFlags::empty(), length, more).is_ok() {
                length += more;
            }
        }
    }

    fn make_room(&self) {
        let _ = fs::remove_file(self.mounted.join(FILLER));
    }

    /// Returns the state of a sandbox and the PID of its VMM.
    fn machine(&self, name: &str) -> (String, u64) {
        let said = self.run(&["inspect", name]).succeeds().json();
        let state = said[0]["state"].as_str().unwrap_or_else(|| panic!("no state: {said}")).to_owned();
        (state, said[0]["vmm"]["pid"].as_u64().unwrap_or_else(|| panic!("no VMM: {said}")))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        self.make_room();
        let rows = self.run(&["ls", "--json"]);
        if rows.code() == Some(0) {
            for row in rows.json().as_array().into_iter().flatten() {
                let _ = self.run(&["rm", "-f", row["id"].as_str().unwrap_or_default()]);
            }
        }
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).status();
    }
}

/// Returns whether a command succeeded. If not, asserts that it failed for want of room, and in no
/// other way.
#[track_caller]
fn is_done_or_refused_for_room(run: &Finished) -> bool {
    let said = run.err();
    for fall in ["this is a bug", "panicked", "signal", "ended without"] {
        assert!(!said.contains(fall), "{}", run.transcript());
    }
    match run.code() {
        Some(0) => true,
        Some(125) => {
            let for_room = ["No space left", "no room", "os error 28"].iter().any(|word| said.contains(word));
            assert!(for_room, "the reason is not named: {}", run.transcript());
            false
        }
        _ => panic!("{}", run.transcript()),
    }
}

#[test]
fn commands_on_a_full_disk_name_the_reason_and_end_no_sandbox() {
    commands_with_room(&[4 << 10, 0]);
}

#[test]
#[ignore = "soak: more and less room, with the same commands"]
fn commands_on_a_nearly_full_disk_name_the_reason_and_end_no_sandbox() {
    commands_with_room(&[1 << 20, 64 << 10]);
}

/// Runs every command with so many bytes left in the file system.
fn commands_with_room(levels: &[u64]) {
    let Some(home) = Home::with_kvm() else { return };
    let disk = SmallDisk::mount(&home);
    let _ = disk.run(&["create", "-m", SMALL, "--name", "keeper"]).succeeds();
    let _ = disk.run(&["exec", "keeper", "--", "sh", "-c", "echo kept > /mark; sync"]).succeeds();
    let _ = disk.run(&["snapshot", "create", "keeper", "before"]).succeeds();
    let file = home.scratch("file");
    fs::write(&file, "content").expect("the test may create a file");
    let file = file.display().to_string();
    for (number, &bytes) in levels.iter().enumerate() {
        let more = format!("more{number}");
        for command in [
            &["ls"][..],
            &["inspect", "keeper"],
            &["stats", "keeper"],
            &["logs", "keeper"],
            &["ps", "keeper"],
            &["pause", "keeper"],
            &["resume", "keeper"],
            &["exec", "keeper", "--", "true"],
            &["cp", &file, "keeper:/copied"],
            &["snapshot", "create", "keeper", &more],
            &["snapshot", "ls"],
            &["fork", "keeper"],
            &["create", "-m", SMALL],
            &["run", "-m", SMALL, "--", "true"],
            &["reset", "keeper"],
            &["reset", "keeper", "before"],
            &["key", "create", &more],
            &["key", "ls"],
            &["volume", "create", &more],
            &["volume", "ls"],
            &["image", "ls"],
            &["audit", "verify"],
            &["prune"],
        ] {
            let (_, before) = disk.machine("keeper");
            disk.leave(bytes);
            let run = disk.run(command);
            let done = is_done_or_refused_for_room(&run);
            let (state, after) = disk.machine("keeper");
            let expected = if command[0] == "pause" && done { "paused" } else { "running" };
            let now = disk.run(&["inspect", "keeper"]);
            assert_eq!(state, expected, "{bytes} bytes left, after {command:?}: {} {}", run.transcript(), now.out());
            assert!(done || after == before, "{command:?} was refused, but changed the VMM");
        }
        // With room again, every command works.
        disk.make_room();
        let _ = disk.run(&["reset", "keeper", "before"]).succeeds();
        let kept = disk.run(&["exec", "keeper", "--", "cat", "/mark"]).succeeds();
        assert_eq!(kept.out(), "kept\n");
    }
}

#[test]
fn a_reset_snapshot_or_fork_that_would_go_below_the_floor_is_refused() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let pid = sandbox.vmm_pid();
    for command in [&["reset", &sandbox.id][..], &["snapshot", "create", &sandbox.id, "s"], &["fork", &sandbox.id]] {
        let run = home.cli(command).env("SANDBOXVM_MIN_FREE_DISK", "100T").run();
        let _ = run.fails_with(&["must stay free"]);
    }
    assert_eq!(sandbox.vmm_pid(), pid);
    assert_eq!(sandbox.sh("echo runs").succeeds().out(), "runs\n");
    sandbox.remove();
    home.assert_nothing_left();
}

/// The log of this server is `/dev/full`, which refuses every write as a file on a full disk does.
#[test]
fn a_server_that_cannot_write_its_log_keeps_serving() {
    let Some(home) = Home::with_kvm() else { return };
    // The server warns that it creates no key.
    let _ = home.cli(["key", "create", "a"]).run().succeeds();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (api, sandboxes) = (free.local_addr().expect("bound"), "127.0.0.1:0");
    drop(free);
    let full = || Stdio::from(File::options().write(true).open("/dev/full").expect("a device of every Linux"));
    let artefacts = home.artefacts();
    let mut server = Command::new(&artefacts.program)
        .args(["serve", "--api", &api.to_string(), "--sandboxes", sandboxes])
        .env("SANDBOXVM_HOME", home.path())
        .env("SANDBOXVM_BUNDLE", &artefacts.bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(full())
        .spawn()
        .expect("the server can be started");
    let answers = eventually(Duration::from_secs(20), || {
        let over = server.try_wait().expect("a child can be waited for");
        assert!(over.is_none(), "the server ended: {over:?}");
        TcpStream::connect(api).ok()
    });
    assert!(answers.is_some(), "the server does not listen");
    processes::kill(server.id());
    let _ = server.wait();
    home.assert_nothing_left();
}
