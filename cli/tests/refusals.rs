//! Commands that fail before a machine is started, as a user sees them: exit code 125, a message that says what is wrong,
//! nothing on stdout, nothing left behind. Needs no KVM.

use std::{
    fs::{self, Permissions},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

struct Place(tempfile::TempDir);

impl Place {
    /// A path for a home, and a bundle in which only the VMM is of the right kind.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let bundle = dir.path().join("bundle");
        fs::create_dir(&bundle).expect("a new directory");
        for name in ["vmlinux", "base.erofs", "agent.erofs"] {
            fs::write(bundle.join(name), format!("this is no {name}")).expect("a new file");
        }
        let vmm = bundle.join("sandboxvm-vmm");
        fs::write(&vmm, "#!/bin/sh\nexit 1\n").expect("a new file");
        fs::set_permissions(&vmm, Permissions::from_mode(0o755)).expect("our own file");
        Self(dir)
    }

    fn home(&self) -> PathBuf {
        self.0.path().join("home")
    }

    fn bundle(&self) -> PathBuf {
        self.0.path().join("bundle")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxvm"));
        command
            .args(arguments)
            .env_clear()
            .env("SANDBOXVM_HOME", self.home())
            .env("SANDBOXVM_BUNDLE", self.bundle())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], hint: &str) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {said}");
        assert!(said.starts_with("sandboxvm: ") && said.contains(hint), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert_eq!(files_below(&self.home()), Vec::<PathBuf>::new(), "{arguments:?} left something");
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        // The directories of the home itself do not count; everything in them belongs to a sandbox.
        if path.is_dir() && directory.ends_with("home") {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn invalid_machines_are_rejected() {
    let place = Place::new();
    for command in ["run", "create"] {
        let refuses = |flags: &[&str], hint: &str| {
            let mut arguments = vec![command];
            arguments.extend(flags);
            if command == "run" {
                arguments.extend(["--", "true"]);
            }
            place.refuses(&arguments, hint);
        };
        refuses(&["-m", "0"], "between 64 MiB and 64 GiB");
        refuses(&["-m", "100T"], "between 64 MiB and 64 GiB");
        refuses(&["-m", "-1"], "--memory");
        refuses(&["-c", "0"], "between 1 and 8");
        refuses(&["-c", "9"], "between 1 and 8");
        refuses(&["--disk", "1M"], "between 64 MiB and 1 TiB");
        for name in ["a\nb", "-a", "A", "a/b", "..", "a b"] {
            refuses(&[&format!("--name={name}")], "invalid sandbox name");
        }
        refuses(&["-e", "=x"], "=x");
    }
}

#[test]
fn missing_and_unknown_commands_are_rejected() {
    let place = Place::new();
    for arguments in [&["run"][..], &["run", "--"], &["exec", "demo"], &["exec", "demo", "--"]] {
        place.refuses(arguments, "COMMAND");
    }
    place.refuses(&["run", "--", ""], "empty");
    place.refuses(&["run", "--timeout", "soon", "--", "true"], "30s");
    place.refuses(&["run", "-it", "--", "true"], "terminal");
    place.refuses(&["run", "-d", "-i", "--", "true"], "cannot be used with");
    place.refuses(&["frobnicate"], "frobnicate");
    place.refuses(&["ls", "--frobnicate"], "--frobnicate");
}

#[test]
fn oversized_variables_are_rejected() {
    let place = Place::new();
    let file = place.0.path().join("env");
    fs::write(&file, format!("BIG={}", "x".repeat(1 << 20))).expect("a new file");
    let file = file.to_str().expect("a temporary directory's name is text");
    place.refuses(&["run", "--env-file", file, "--", "true"], "longer than the 131071");
}

#[test]
fn unknown_sandboxes_are_reported() {
    let place = Place::new();
    for id in ["zzzzzzzzzzzzzzzz", "demo", "../x", "", "-"] {
        for arguments in [
            &["exec", "--", id, "true"][..],
            &["logs", "--", id],
            &["inspect", "--", id],
            &["stats", "--", id],
            &["stop", "--", id],
            &["pause", "--", id],
            &["resume", "--", id],
            &["rm", "-f", "--", id],
        ] {
            place.refuses(arguments, "no sandbox has the name or ID");
        }
    }
}

#[test]
fn unusable_bundles_are_rejected() {
    let place = Place::new();
    place.refuses(&["run", "--", "true"], "vmlinux: not an ELF file");
    fs::write(place.bundle().join("vmlinux"), minimal_elf()).expect("a file of ours");
    place.refuses(&["run", "--", "true"], "base.erofs: the file is truncated");
    fs::write(place.bundle().join("base.erofs"), "").expect("a file of ours");
    place.refuses(&["create"], "base.erofs: the file is empty");
    fs::write(place.bundle().join("base.erofs"), vec![0; 8192]).expect("a file of ours");
    place.refuses(&["create"], "base.erofs: not an EROFS image");
    fs::remove_file(place.bundle().join("sandboxvm-vmm")).expect("a file of ours");
    place.refuses(&["create"], "scripts/quickstart");
    let stated = place.0.path().join("other");
    fs::write(&stated, "#!/bin/sh").expect("a new file");
    let output = place.command(&["doctor", "--json"]).env("SANDBOXVM_KERNEL", &stated).output().expect("it starts");
    assert_eq!(output.status.code(), Some(125));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["usable"], false);
    let checks = report["checks"].as_array().expect("a list");
    let kernel = checks.iter().find(|check| check["name"] == "guest kernel").expect("it is checked");
    assert!(kernel["detail"].as_str().is_some_and(|text| text.contains("but a script")), "{kernel}");
}

/// The smallest file that is an x86-64 ELF executable with something to load.
fn minimal_elf() -> Vec<u8> {
    let mut elf = vec![0u8; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[16] = 2;
    elf[18] = 62;
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = 1;
    elf
}

#[test]
fn failing_vmm_is_reported_and_leaves_nothing() {
    let place = Place::new();
    let erofs = {
        let mut image = vec![0u8; 4096];
        image[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
        image[1036] = 12;
        image[1060] = 1;
        image
    };
    fs::write(place.bundle().join("vmlinux"), minimal_elf()).expect("a file of ours");
    fs::write(place.bundle().join("base.erofs"), &erofs).expect("a file of ours");
    fs::write(place.bundle().join("agent.erofs"), &erofs).expect("a file of ours");
    let script = "#!/bin/sh\nprintf 'no \\033[31mKVM here' >&2\nexit 3\n";
    fs::write(place.bundle().join("sandboxvm-vmm"), script).expect("a file of ours");
    for arguments in [&["run", "--name", "demo", "--", "true"][..], &["create", "--name", "demo"]] {
        let output = place.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains("exit status: 3") && said.contains("last VMM messages"), "{said}");
        assert!(said.contains("no \\u{1b}[31mKVM here"), "escaped: {said}");
        // Files that all sandboxes share stay, and so does the lock of the ready snapshot: if a failed attempt removed it, two
        // other processes could hold it at the same time. No snapshot stays, and prune removes the lock.
        let home = place.home();
        let is_shared =
            |path: &PathBuf| ["templates", "contents", "admitted"].iter().any(|name| path.starts_with(home.join(name)));
        let left = || files_below(&home).into_iter().filter(|path| !is_shared(path)).collect::<Vec<PathBuf>>();
        let is_lock = |path: &PathBuf| {
            path.parent() == Some(&home.join("ready")) && path.extension().is_some_and(|extension| extension == "lock")
        };
        assert!(left().iter().all(is_lock), "left behind: {:?}", left());
        assert_eq!(place.run(&["prune"]).status.code(), Some(0));
        assert_eq!(left(), Vec::<PathBuf>::new(), "prune left something");
    }
}

#[test]
fn closed_stdout_is_not_an_error() {
    let place = Place::new();
    let mut child = place
        .command(&["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("readable");
    assert_eq!(said, "");
    // A script of this length may also have been taken by the pipe before its reader went.
    assert!(matches!(child.wait().expect("our child").code(), Some(0 | 141)));
}

#[test]
fn help_and_version_are_printed_on_stdout() {
    let place = Place::new();
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"], &["ls"], &["ls", "--json"], &["prune"]] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(place.run(&["ls", "--json"]).stdout, b"[]\n");
}

#[test]
fn invalid_process_arguments_are_rejected() {
    let place = Place::new();
    place.refuses(&["logs", "--vmm", "demo", "3"], "--vmm");
    place.refuses(&["logs", "--console", "demo", "3"], "--console");
    place.refuses(&["logs", "-n", "5", "demo", "3"], "--tail");
    place.refuses(&["attach", "demo"], "PID");
    place.refuses(&["wait", "demo", "init"], "init");
    place.refuses(&["kill", "demo", "3", "-s", "NOPE"], "name such as TERM");
    place.refuses(&["kill", "demo", "3", "-s", "65"], "between 1 and 64");
    place.refuses(&["attach", "-it", "demo", "3"], "terminal");
    // Without a PID it is the console that would be followed.
    place.refuses(&["logs", "-f", "demo"], "no sandbox");
    for command in [&["ps", "demo"][..], &["attach", "demo", "3"], &["wait", "demo", "3"], &["kill", "demo", "3"]] {
        place.refuses(command, "demo");
    }
}
