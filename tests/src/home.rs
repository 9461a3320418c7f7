//! A new `SANDBOXVM_HOME` for each test and the sandboxes in it. All of it is removed at the end,
//! also after a failure.

use crate::{
    artefacts::{Artefacts, kvm_is_wanted},
    cli::{Finished, Invocation, Running, terminal::TerminalSession},
    host::{leaks, processes},
    interruption, seed,
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

/// A home directory that only one test uses.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    artefacts: Artefacts,
}

impl Home {
    /// Returns a new home without sandboxes, which usually need not boot (see [`seed`]). Returns
    /// `None` with `SANDBOXVM_NO_KVM=1`: the test then returns immediately.
    ///
    /// # Panics
    /// Panics if KVM or an artefact under test is missing.
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

    /// As [`Self::with_kvm`], with the VMM for drills. `without` names the protections that are off
    /// (`vmm/src/confine/switches.rs`), and `target` is the target of the attack. The first sandbox
    /// boots, as no other home has a ready snapshot of such a machine.
    ///
    /// # Panics
    /// Panics as [`Self::with_kvm`], and if there is no VMM for drills.
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
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("the test may change the file");
        home.artefacts.bundle = home.artefacts.bundle_with(&home.scratch("bundle"), "sandboxvm-vmm", &script);
        Some(home)
    }

    /// As [`Self::cli`], but without any control group of version 2, as on a host that has none.
    #[must_use]
    pub fn cli_without_groups<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        let mut command = self.prepared(without_groups(&self.artefacts.program));
        command.args(arguments);
        Invocation::new(command)
    }

    /// Returns a path beside the home that the test may use. It is removed with the home.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the value of `SANDBOXVM_HOME`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// Returns the artefacts under test.
    #[must_use]
    pub fn artefacts(&self) -> &Artefacts {
        &self.artefacts
    }

    /// Returns `sandboxvm` with these arguments, in this home and with hardly any environment
    /// variables.
    #[must_use]
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        let mut command = self.prepared(Command::new(&self.artefacts.program));
        command.args(arguments);
        Invocation::new(command)
    }

    /// As [`Self::cli`], started by another program, which executes the command behind its
    /// arguments.
    #[must_use]
    pub fn cli_under(&self, launcher: &str, its: &[String], arguments: &[&str]) -> Invocation {
        let mut command = self.prepared(Command::new(launcher));
        command.args(its).arg(&self.artefacts.program).args(arguments);
        Invocation::new(command)
    }

    /// As [`Self::cli`], on a new terminal.
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

    /// Creates a sandbox. Asserts that it succeeds.
    #[track_caller]
    #[must_use]
    pub fn create(&self, flags: &[&str]) -> Sandbox<'_> {
        let made = self.cli(["create"]).args(flags).run().succeeds();
        Sandbox::printed(self, &made)
    }

    /// Returns the IDs of the sandboxes that `ls` shows.
    #[track_caller]
    #[must_use]
    pub fn listed(&self) -> Vec<String> {
        let rows = self.cli(["ls", "--json"]).run().succeeds().json();
        let rows = rows.as_array().expect("ls --json is an array");
        rows.iter().map(|row| row["id"].as_str().expect("a row has an id").to_owned()).collect()
    }

    /// Returns the row of this sandbox in `ls --json`.
    #[track_caller]
    #[must_use]
    pub fn row(&self, id: &str) -> serde_json::Value {
        let rows = self.cli(["ls", "--json"]).run().succeeds().json();
        let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == id)).cloned();
        row.unwrap_or_else(|| panic!("ls does not show {id}: {rows}"))
    }

    /// Asserts that nothing of any sandbox is left, now or within a moment.
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
        // Kills only processes that use this home, by descriptor: after a failure a sandbox may
        // still run.
        processes::kill_all_of(&self.path());
        self.remove_groups();
        interruption::end(self.directory.path());
    }
}

impl Home {
    /// Removes the control groups of the home's sandboxes. One that has a process stays.
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

    /// Prints the logs of the VMMs, to explain a failure.
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

/// Returns a command that executes `program` in a mount namespace without a control group of
/// version 2.
#[must_use]
pub fn without_groups(program: &Path) -> Command {
    const HIDE: &str = "for at in $(findmnt -n -l -t cgroup2 -o TARGET); do umount \"$at\"; done; exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", HIDE]).arg(program);
    command
}

/// A sandbox that `create` or `run -d` created.
#[derive(Debug, Clone)]
pub struct Sandbox<'h> {
    home: &'h Home,
    /// ID of the sandbox.
    pub id: String,
}

impl<'h> Sandbox<'h> {
    /// Returns the sandbox whose ID is the only output of `made`.
    #[track_caller]
    #[must_use]
    pub fn printed(home: &'h Home, made: &Finished) -> Self {
        let out = made.out();
        let id = out.strip_suffix('\n').unwrap_or(&out).to_owned();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        assert!(id.len() >= 8 && id.bytes().all(plain), "expected an ID alone on stdout: {}", made.transcript());
        Self { home, id }
    }

    /// Returns the sandbox with this ID.
    #[must_use]
    pub fn called(home: &'h Home, id: &str) -> Self {
        Self { home, id: id.to_owned() }
    }

    /// Returns `sandboxvm exec ID ...`.
    #[must_use]
    pub fn exec<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        self.home.cli(["exec", &self.id]).args(arguments)
    }

    /// Runs a shell script in the sandbox.
    #[must_use]
    pub fn sh(&self, script: &str) -> Finished {
        self.exec(["--", "sh", "-c", script]).run()
    }

    /// Starts a shell script in the sandbox.
    #[must_use]
    pub fn spawn_sh(&self, script: &str) -> Running {
        self.exec(["--", "sh", "-c", script]).spawn()
    }

    /// Returns the directory of the sandbox.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.home.path().join("sandboxes").join(&self.id)
    }

    /// Returns the status that the VMM last wrote.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        read_status(&self.directory())
    }

    /// Returns the PID of the VMM.
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

    /// Removes the sandbox, whether it runs or not. Asserts that it succeeds.
    #[track_caller]
    pub fn remove(&self) {
        let _ = self.home.cli(["rm", "-f", &self.id]).run().succeeds();
    }
}

/// Reads the status file. The VMM rewrites it in place, so this reads again if it is incomplete.
fn read_status(directory: &Path) -> VmStatus {
    let path = directory.join("status.json");
    eventually(Duration::from_secs(20), || serde_json::from_slice(&fs::read(&path).ok()?).ok())
        .unwrap_or_else(|| panic!("{} holds no status", path.display()))
}
