//! A fresh `SANDBOXVM_HOME` per test, the sandboxes made in it, and taking all of it away, also after a failure.

use crate::{
    artefacts::{Artefacts, kvm_is_wanted},
    cli::{Finished, Invocation, Running},
    interruption, leaks, processes, seed,
    terminal::TerminalSession,
};
pub use crate::{seed::SMALL, waiting::eventually};
use sandboxvm_protocol::vmm::VmStatus;
use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// A home directory that is this test's alone.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    artefacts: Artefacts,
}

impl Home {
    /// A new home without sandboxes, which need not boot (see [`seed`]); `None` with `SANDBOXVM_NO_KVM=1`, where the test is to return at once.
    ///
    /// # Panics
    /// When KVM or something to test is missing.
    #[must_use]
    pub fn with_kvm() -> Option<Self> {
        if !kvm_is_wanted() {
            eprintln!("left out: SANDBOXVM_NO_KVM=1");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("sandboxvm-test-").tempdir().expect("a temporary directory");
        interruption::begin(directory.path());
        let home = Self { directory, artefacts: Artefacts::find() };
        seed::plant(&home.path(), &home.artefacts);
        Some(home)
    }

    /// The same, with the VMM for drills, whose named protections are off (`vmm/src/confine/switches.rs`) and which aims at
    /// `target`. Its first sandbox boots: no other home has a machine of that kind.
    ///
    /// # Panics
    /// As [`Self::with_kvm`], and where there is no VMM for drills.
    #[must_use]
    pub fn with_drills(without: &str, target: &str) -> Option<Self> {
        let mut home = Self::with_kvm()?;
        let script = home.scratch("drilled-vmm");
        let program = crate::drills::program();
        let text = format!(
            "#!/bin/sh\nSANDBOXVM_DRILL_WITHOUT={without} SANDBOXVM_DRILL_TARGET={target} exec {} \"$@\"\n",
            program.display()
        );
        fs::write(&script, text).expect("the test's directory can be written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our own file");
        home.artefacts.bundle = home.artefacts.bundle_with(&home.scratch("bundle"), "sandboxvm-vmm", &script);
        Some(home)
    }

    /// `sandboxvm` where no control group of version 2 can be reached, as on a host without them.
    #[must_use]
    pub fn cli_without_groups<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        let mut command = self.prepared(without_groups(&self.artefacts.program));
        command.args(arguments);
        Invocation::new(command)
    }

    /// A path of the test's own, beside the home proper, that goes away with it.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The value of `SANDBOXVM_HOME`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// What is being tested.
    #[must_use]
    pub fn artefacts(&self) -> &Artefacts {
        &self.artefacts
    }

    /// `sandboxvm` with these arguments, in this home and an environment that holds little else.
    #[must_use]
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        let mut command = self.prepared(Command::new(&self.artefacts.program));
        command.args(arguments);
        Invocation::new(command)
    }

    /// The same, started by another program, which executes what stands behind its arguments.
    #[must_use]
    pub fn cli_under(&self, launcher: &str, its: &[String], arguments: &[&str]) -> Invocation {
        let mut command = self.prepared(Command::new(launcher));
        command.args(its).arg(&self.artefacts.program).args(arguments);
        Invocation::new(command)
    }

    /// The same on a terminal of its own.
    #[must_use]
    pub fn cli_on_terminal(&self, arguments: &[&str], rows: u16, columns: u16) -> TerminalSession {
        let mut command = self.prepared(Command::new("setsid"));
        command.arg("--ctty").arg(&self.artefacts.program).args(arguments).env("TERM", "vt100");
        TerminalSession::start(command, rows, columns)
    }

    fn prepared(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("SANDBOXVM_HOME", self.path())
            .env("SANDBOXVM_BUNDLE", &self.artefacts.bundle)
            .current_dir("/");
        command
    }

    /// Makes a sandbox and expects that to work.
    #[track_caller]
    #[must_use]
    pub fn create(&self, flags: &[&str]) -> Sandbox<'_> {
        let made = self.cli(["create"]).args(flags).run().succeeds();
        Sandbox::printed(self, &made)
    }

    /// IDs of the sandboxes that `ls` shows.
    #[track_caller]
    #[must_use]
    pub fn listed(&self) -> Vec<String> {
        let rows = self.cli(["ls", "--json"]).run().succeeds().json();
        let rows = rows.as_array().expect("ls --json is an array");
        rows.iter().map(|row| row["id"].as_str().expect("a row has an id").to_owned()).collect()
    }

    /// The row of `ls --json` for this sandbox.
    #[track_caller]
    #[must_use]
    pub fn row(&self, id: &str) -> serde_json::Value {
        let rows = self.cli(["ls", "--json"]).run().succeeds().json();
        let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == id)).cloned();
        row.unwrap_or_else(|| panic!("ls does not show {id}: {rows}"))
    }

    /// Fails unless every trace of every sandbox is gone, now or within a moment.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        leaks::assert_nothing_left(&self.path());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // By descriptor and only what holds this very home: a sandbox may have outlived its test's failure.
        processes::kill_all_of(&self.path());
        self.remove_groups();
        interruption::end(self.directory.path());
    }
}

impl Home {
    /// Control groups that the home's sandboxes had or were to have. One with a process in it stays.
    fn remove_groups(&self) {
        let below = |name: &str| fs::read_dir(self.path().join(name)).into_iter().flatten().flatten();
        let of_sandboxes =
            ["sandboxes", "staging", "trash"].into_iter().flat_map(below).map(|at| at.path().join("group"));
        let made_ahead = below("groups").map(|link| link.path());
        for group in of_sandboxes.chain(made_ahead).filter_map(|link| fs::read_link(link).ok()) {
            let empty = || fs::remove_dir(&group).is_ok() || !group.exists();
            let _ = eventually(Duration::from_secs(2), || empty().then_some(()));
        }
    }

    /// Shows what the VMMs said, for the report of a failure.
    fn show_logs(&self) {
        let Ok(sandboxes) = fs::read_dir(self.path().join("sandboxes")) else { return };
        for directory in sandboxes.flatten().map(|entry| entry.path()) {
            for name in ["status.json", "vmm.log", "console.log"] {
                let Ok(content) = fs::read(directory.join(name)) else { continue };
                let end = &content[content.len().saturating_sub(3000)..];
                eprintln!("--- {} ---\n{}", directory.join(name).display(), String::from_utf8_lossy(end));
            }
        }
    }
}

/// A command that replaces itself by `program`, in a mount namespace where no control group of version 2 is mounted.
#[must_use]
pub fn without_groups(program: &Path) -> Command {
    const HIDE: &str = "for at in $(findmnt -n -l -t cgroup2 -o TARGET); do umount \"$at\"; done; exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", HIDE]).arg(program);
    command
}

/// A sandbox that `create` or `run -d` made.
#[derive(Debug, Clone)]
pub struct Sandbox<'h> {
    home: &'h Home,
    /// Its ID.
    pub id: String,
}

impl<'h> Sandbox<'h> {
    /// The sandbox whose ID `made` printed, alone on its line.
    #[track_caller]
    #[must_use]
    pub fn printed(home: &'h Home, made: &Finished) -> Self {
        let out = made.out();
        let id = out.strip_suffix('\n').unwrap_or(&out).to_owned();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        assert!(id.len() >= 8 && id.bytes().all(plain), "expected an ID alone on stdout: {}", made.transcript());
        Self { home, id }
    }

    /// The sandbox with this ID.
    #[must_use]
    pub fn called(home: &'h Home, id: &str) -> Self {
        Self { home, id: id.to_owned() }
    }

    /// `sandboxvm exec ID ...`.
    #[must_use]
    pub fn exec<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        self.home.cli(["exec", &self.id]).args(arguments)
    }

    /// Runs a shell script in it.
    #[must_use]
    pub fn sh(&self, script: &str) -> Finished {
        self.exec(["--", "sh", "-c", script]).run()
    }

    /// Starts a shell script in it.
    #[must_use]
    pub fn spawn_sh(&self, script: &str) -> Running {
        self.exec(["--", "sh", "-c", script]).spawn()
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.home.path().join("sandboxes").join(&self.id)
    }

    /// What its VMM last wrote of itself.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        read_status(&self.directory())
    }

    /// PID of its VMM.
    #[must_use]
    pub fn vmm_pid(&self) -> u32 {
        let pid = self.status().pid;
        let holders = processes::that_hold(&self.directory());
        assert!(
            holders.iter().any(|process| process.pid == pid),
            "process {pid} holds nothing of {}: {holders:?}",
            self.id
        );
        pid
    }

    /// Removes it, running or not, and expects that to work.
    #[track_caller]
    pub fn remove(&self) {
        let _ = self.home.cli(["rm", "-f", &self.id]).run().succeeds();
    }
}

/// The status file, which its VMM rewrites in place: read again when it is caught half written.
fn read_status(directory: &Path) -> VmStatus {
    let path = directory.join("status.json");
    eventually(Duration::from_secs(1), || serde_json::from_slice(&fs::read(&path).ok()?).ok())
        .unwrap_or_else(|| panic!("{} holds no status", path.display()))
}
