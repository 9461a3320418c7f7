//! `changes`, `apply` and `discard` of a stopped sandbox, as a user sees them. The sandbox is made of files: what its guest would
//! have written is packed here. Needs no KVM.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_workspace::{CopyOptions, copy_in};
use std::{
    fs::{self, File},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const ID: &str = "aaaaaaaaaaaa";

struct Place {
    directory: tempfile::TempDir,
}

fn entry(path: &str, kind: Kind, mode: u32) -> Entry {
    let modified = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    Entry { path: path.into(), kind, mode, uid: 0, gid: 0, modified, attributes: vec![] }
}

/// A file of the layer: path, mode and content.
type LayerFile<'a> = (&'a str, u32, &'a [u8]);

impl Place {
    /// A project, and a stopped sandbox that changed it.
    fn new(project: &[(&str, &str)], files: &[LayerFile<'_>], links: &[(&str, &str)]) -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        for (path, content) in project {
            let path = place.project().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let options = CopyOptions::default();
        let copied = copy_in(&place.project(), &place.path("home/workspaces"), (0, 0), &options).unwrap();
        let sandbox = place.sandbox();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(sandbox.join("workspace")).unwrap();
        fs::hard_link(&copied.layers[0], sandbox.join("slot.0")).unwrap();
        fs::hard_link(&copied.index, sandbox.join("workspace.index")).unwrap();
        let file = r#"{"path":"/x","identity":{"device":0,"inode":0,"size":0,"modified_ns":0}}"#;
        let config = format!(
            r#"{{"format":1,"id":"{ID}","name":null,"created_at":"2026-01-01T00:00:00Z","vcpus":1,"memory_bytes":268435456,
            "disk_bytes":1073741824,"kernel":{file},"image":{file},"agent":{file},"env":[],"ephemeral":false,
            "workspace":{{"origin":{:?},"at":"/workspace","uid":0,"gid":0,"slots":["slot.0"]}}}}"#,
            place.project()
        );
        fs::write(sandbox.join("config.json"), config).unwrap();
        let mut writer = Writer::new(File::create(sandbox.join("workspace/changes.tar")).unwrap());
        for (path, mode, content) in files {
            let kind = Kind::File { size: content.len() as u64, extents: None };
            writer.begin(&entry(path, kind, *mode)).unwrap();
            writer.content(content).unwrap();
            writer.end().unwrap();
        }
        for (path, target) in links {
            writer.begin(&entry(path, Kind::Symlink(target.as_bytes().to_vec()), 0o777)).unwrap();
            writer.end().unwrap();
        }
        writer.finish().unwrap();
        place
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn project(&self) -> PathBuf {
        self.path("project")
    }

    fn sandbox(&self) -> PathBuf {
        self.path("home/sandboxes").join(ID)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sandboxvm"))
            .args(arguments)
            .env_clear()
            .env("SANDBOXVM_HOME", self.path("home"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn succeeds(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let (out, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {out}{said}");
        (out, said)
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], parts: &[&str]) {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
        for part in parts {
            assert!(said.contains(part), "{arguments:?}, expected {part:?}: {said}");
        }
    }
}

#[test]
fn changes_are_shown_applied_and_discarded() {
    let place = Place::new(
        &[("a.txt", "one\ntwo\n"), ("gone/x", "x\n"), ("same", "same\n")],
        &[
            ("a.txt", 0o644, b"one\n2\n\x1b[2J\n"),
            (".wh.gone", 0o600, b""),
            ("same", 0o644, b"same\n"),
            ("new\x1b[2J", 0o644, b"new"),
            ("tool", 0o755, b"#!/bin/sh\n"),
            (".git/refs/heads/main", 0o644, b"0123456789abcdef0123456789abcdef01234567\n"),
        ],
        &[],
    );
    let (out, said) = place.succeeds(&["changes", ID]);
    let expected = "modified  a.txt\ndeleted   gone/\ndeleted   gone/x\nadded     new\\u{1b}[2J\nadded     tool\n";
    assert_eq!(out, expected);
    assert!(said.contains("branch main is at commit 0123456789ab\n"), "{said}");
    let (out, _) = place.succeeds(&["changes", ID, "--stat"]);
    assert!(out.contains("a.txt") && out.contains("+2 -1") && out.contains("5 changed"), "{out}");
    let (out, _) = place.succeeds(&["changes", ID, "--patch"]);
    assert!(out.contains("-two\n+2\n+\x1b[2J\n") && out.contains("\"b/new\\033[2J\""), "{out}");
    let (out, _) = place.succeeds(&["changes", ID, "--json"]);
    assert!(out.contains("\"new\\u001b[2J\"") && out.contains("\"added_lines\": 2"), "{out}");

    place.refuses(&["apply", ID, "--yes"], &["tool: it is a new executable", "hint: --allow-exec"]);
    place.refuses(&["apply", ID, "a.txt"], &["cannot ask", "--yes"]);
    place.refuses(&["apply", ID, "none", "--yes"], &["no changes at \"none\""]);
    assert_eq!(fs::read_to_string(place.project().join("a.txt")).unwrap(), "one\ntwo\n");
    place.succeeds(&["apply", ID, "./a.txt", "--yes"]);
    assert_eq!(fs::read(place.project().join("a.txt")).unwrap(), b"one\n2\n\x1b[2J\n");
    assert!(place.project().join("gone").exists());
    let (out, said) = place.succeeds(&["apply", ID, "--yes", "--allow-exec"]);
    assert!(out.is_empty() && said.contains("skipped 1 change that the host already has"), "{said}");
    assert!(
        said.contains("warning: cannot fetch the commits") && said.contains("not the directory of a git"),
        "{said}"
    );
    assert!(!place.project().join("gone").exists() && !place.project().join(".git").exists());
    let mode = fs::metadata(place.project().join("tool")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    let (_, said) = place.succeeds(&["apply", ID, "--yes"]);
    assert!(said.contains("nothing to apply"), "{said}");

    place.refuses(&["discard", ID], &["--yes"]);
    let (out, _) = place.succeeds(&["discard", ID, "--yes"]);
    assert_eq!(out, format!("{ID}\n"));
    assert!(!place.sandbox().exists() && place.project().join("tool").exists());
    place.refuses(&["changes", ID], &["sandbox"]);
}

#[test]
fn commits_are_fetched_into_the_repository() {
    let guest = tempfile::tempdir().unwrap();
    let git = |directory: &Path, arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "safe.directory=*", "-C"]);
        let output = command.arg(directory).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    git(guest.path(), &["init", "-q", "-b", "main"]);
    fs::write(guest.path().join("a"), "2").unwrap();
    git(guest.path(), &["add", "a"]);
    git(guest.path(), &["commit", "-qm", "two"]);
    let listed =
        Command::new("find").args([".git/objects", ".git/refs/heads", "-type", "f"]).current_dir(&guest).output();
    let paths = String::from_utf8(listed.unwrap().stdout).unwrap();
    let files: Vec<_> = paths.lines().map(|path| (path, fs::read(guest.path().join(path)).unwrap())).collect();
    let mut changes: Vec<(&str, u32, &[u8])> = vec![("a", 0o644, b"2")];
    changes.extend(files.iter().map(|(path, content)| (*path, 0o644, &content[..])));
    let place = Place::new(&[("a", "1")], &changes, &[]);
    git(&place.project(), &["init", "-q", "-b", "main"]);

    // Named paths are files only.
    let (_, said) = place.succeeds(&["apply", ID, "--yes", "a"]);
    assert!(said.contains("applied 1 change") && !said.contains("commit of"), "{said}");
    place.refuses(&["apply", ID, "--commits"], &["cannot ask", "--yes"]);
    let (_, said) = place.succeeds(&["apply", ID, "--yes"]);
    assert!(said.contains(&format!("fetched 1 commit of main as sandboxvm/{ID}/main")), "{said}");
    let shown = git(&place.project(), &["show", &format!("sandboxvm/{ID}/main:a")]);
    assert_eq!(shown, "2");
    let (_, said) = place.succeeds(&["apply", ID, "--commits", "--yes"]);
    assert!(said.contains("no new commits"), "{said}");
    let (out, _) = place.succeeds(&["changes", ID, "--json"]);
    assert!(out.contains("\"branches\": [\n    {\n      \"name\": \"main\""), "{out}");
}

#[test]
fn conflicts_show_both_sides_and_links_need_consent() {
    let text: String = (0..9).map(|line| format!("{line}\n")).collect();
    let changed = text.replace("1\n", "one\n");
    let place = Place::new(
        &[("text", &text), ("other", "1")],
        &[("text", 0o644, changed.as_bytes()), ("other", 0o644, b"2")],
        &[("link", "/etc/passwd")],
    );
    place.refuses(&["apply", ID, "--yes"], &["link: symbolic link to /etc/passwd", "hint: --allow-links"]);
    fs::write(place.project().join("text"), text.replace("8\n", "eight\n")).unwrap();
    fs::write(place.project().join("other"), "three").unwrap();
    place.refuses(
        &["apply", ID, "--yes", "text", "other"],
        &[
            "conflict: other: both sides changed it",
            "host:    changed: file of 5 bytes, mode 644, +1 -1 lines",
            "sandbox: changed: file of 1 byte, mode 644, +1 -1 lines",
            "2 conflicts with the host",
            "hint: `--merge`",
        ],
    );
    place.refuses(&["apply", ID, "--yes", "--merge", "text", "other"], &["1 conflict with the host"]);
    place.succeeds(&["apply", ID, "--yes", "--merge", "text"]);
    let merged = fs::read_to_string(place.project().join("text")).unwrap();
    assert_eq!(merged, changed.replace("8\n", "eight\n"));
    place.succeeds(&["apply", ID, "--yes", "--allow-links", "link"]);
    assert_eq!(fs::read_link(place.project().join("link")).unwrap(), Path::new("/etc/passwd"));
}
