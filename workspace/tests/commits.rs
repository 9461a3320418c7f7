//! Commits of a sandbox, made by the real git in its overlay, fetched into the repository of the project.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::sandbox::{Sandbox, contents};
use sandboxvm_workspace::{CommitsError, Gathered, branches, gather};
use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Runs git as the agent or the user would. Returns its output.
fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "safe.directory=*", "-C"]);
    let output = command.arg(directory).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit(directory: &Path, file: &str, text: &str) -> String {
    fs::write(directory.join(file), text).unwrap();
    git(directory, &["add", "-A"]);
    git(directory, &["commit", "-qm", text]);
    git(directory, &["rev-parse", "HEAD"])
}

/// A repository with two commits, and a sandbox with a copy of it.
fn project(directory: &Path) -> Option<(PathBuf, Sandbox)> {
    let project = directory.join("project");
    fs::create_dir(&project).unwrap();
    git(&project, &["init", "-q", "-b", "main"]);
    commit(&project, "a", "one");
    commit(&project, "b", "two");
    let sandbox = Sandbox::new(&project, directory, "demo")?;
    Some((project, sandbox))
}

fn found(gathered: &Gathered) -> Vec<(&str, u64)> {
    gathered.branches().iter().map(|(branch, count)| (branch.name.as_str(), *count)).collect()
}

#[test]
fn commits_on_every_branch_are_fetched_and_nothing_else_changes() {
    let directory = tempfile::tempdir().unwrap();
    let Some((project, sandbox)) = project(directory.path()) else { return };
    let guest = &sandbox.overlay.root;
    let main = commit(guest, "a", "three");
    git(guest, &["checkout", "-qb", "feature/x"]);
    commit(guest, "c", "four");
    // A part in a pack with deltas, and references in `packed-refs`.
    git(guest, &["gc", "-q"]);
    let feature = commit(guest, "c", "five");
    git(guest, &["checkout", "-q", "--detach"]);
    let detached = commit(guest, "d", "six");
    git(guest, &["branch", "same", "main~1"]);
    let before = (contents(&project), git(&project, &["for-each-ref"]));

    let review = sandbox.review();
    let names: Vec<_> = branches(&review).unwrap().into_iter().map(|branch| branch.name).collect();
    assert_eq!(names, ["HEAD", "feature/x", "main", "same"]);
    let gathered = gather(&review).unwrap().unwrap();
    assert_eq!(found(&gathered), [("HEAD", 4), ("feature/x", 3), ("main", 1)]);
    let after = (contents(&project), git(&project, &["for-each-ref"]));
    assert!(before == after, "gathering changes nothing");
    gathered.fetch("demo").unwrap();
    for (name, commit) in [("main", &main), ("feature/x", &feature), ("HEAD", &detached)] {
        assert_eq!(&git(&project, &["rev-parse", &format!("sandboxvm/demo/{name}")]), commit);
    }
    assert_eq!(
        git(&project, &["for-each-ref", "refs/heads"]),
        git(&project, &["for-each-ref", "--format=%(objectname) commit\t%(refname)", "refs/heads/main"])
    );
    assert_eq!(git(&project, &["status", "--porcelain"]), "");
    git(&project, &["fsck", "--full", "--strict"]);
    git(&project, &["merge", "-q", "--ff-only", "sandboxvm/demo/feature/x"]);
    assert_eq!(fs::read_to_string(project.join("c")).unwrap(), "five");
    // Fetched once, they are no longer new.
    assert!(gather(&review).unwrap().is_none());
}

#[test]
fn settings_hooks_and_links_of_the_sandbox_are_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let Some((project, sandbox)) = project(directory.path()) else { return };
    let guest = &sandbox.overlay.root;
    let mark = directory.path().join("executed");
    let script = format!("#!/bin/sh\ntouch {}\n", mark.display());
    let secret = directory.path().join("secret");
    fs::create_dir(&secret).unwrap();
    git(&secret, &["init", "-q"]);
    let hidden = commit(&secret, "s", "secret");
    let main = commit(guest, "a", "three");
    for hook in ["reference-transaction", "post-checkout", "post-merge", "update", "pre-auto-gc"] {
        fs::write(guest.join(".git/hooks").join(hook), &script).unwrap();
        fs::set_permissions(guest.join(".git/hooks").join(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let run = guest.join("run");
    fs::write(&run, &script).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    for key in
        ["core.fsmonitor", "core.sshCommand", "core.pager", "uploadpack.packObjectsHook", "core.alternateRefsCommand"]
    {
        git(guest, &["config", key, run.to_str().unwrap()]);
    }
    // With the alternates of the sandbox, a commit of another repository could be named.
    fs::write(guest.join(".git/objects/info/alternates"), format!("{}\n", secret.join(".git/objects").display()))
        .unwrap();
    fs::write(guest.join(".git/refs/heads/hidden"), format!("{hidden}\n")).unwrap();
    symlink("/etc/passwd", guest.join(".git/refs/heads/link")).unwrap();
    fs::write(guest.join(".git/refs/heads/-x"), format!("{main}\n")).unwrap();
    fs::write(guest.join(".git/refs/heads/a b"), format!("{main}\n")).unwrap();

    let review = sandbox.review();
    let names: Vec<_> = branches(&review).unwrap().into_iter().map(|branch| branch.name).collect();
    assert_eq!(names, ["hidden", "main"]);
    let error = gather(&review).unwrap_err();
    assert!(matches!(&error, CommitsError::Git { command, .. } if command == "rev-list"), "{error}");
    assert!(error.to_string().contains(&hidden), "{error}");

    fs::remove_file(guest.join(".git/refs/heads/hidden")).unwrap();
    gather(&sandbox.review()).unwrap().unwrap().fetch("demo").unwrap();
    assert_eq!(git(&project, &["rev-parse", "sandboxvm/demo/main"]), main);
    assert!(!mark.exists(), "a program of the sandbox ran");
    assert!(git(&project, &["config", "--list", "--local"]).lines().all(|line| !line.contains("run")));
}

#[test]
fn objects_that_git_would_refuse_from_a_server_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let Some((project, sandbox)) = project(directory.path()) else { return };
    let guest = &sandbox.overlay.root;
    // A tree with `.git` in it, which a check-out would write: git makes it only by hand.
    let blob = git(guest, &["rev-parse", "HEAD:a"]);
    let bytes: Vec<u8> = (0..20).map(|at| u8::from_str_radix(&blob[2 * at..2 * at + 2], 16).unwrap()).collect();
    let tree = [&b"100644 .git\0"[..], &bytes].concat();
    let file = directory.path().join("tree");
    fs::write(&file, tree).unwrap();
    let tree = git(guest, &["hash-object", "-t", "tree", "--literally", "-w", file.to_str().unwrap()]);
    let commit = git(guest, &["commit-tree", "-m", "x", "-p", "HEAD", &tree]);
    fs::write(guest.join(".git/refs/heads/evil"), format!("{commit}\n")).unwrap();
    let error = gather(&sandbox.review()).unwrap_err();
    assert!(matches!(&error, CommitsError::Git { command, .. } if command == "index-pack"), "{error}");
    assert!(error.to_string().contains("hasDotgit"), "{error}");
    // Without the check, git takes it.
    let pack = git(guest, &["rev-list", "--objects", "evil"]);
    assert!(pack.contains(&tree));
    let unchecked = directory.path().join("unchecked");
    git(
        directory.path(),
        &["-c", "transfer.fsckObjects=false", "clone", "-q", "--bare", guest.to_str().unwrap(), "unchecked"],
    );
    git(&unchecked, &["cat-file", "-e", &tree]);

    // Bytes that are not an object.
    let loose = guest.join(".git/objects").join(&tree[..2]).join(&tree[2..]);
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&loose, b"x").unwrap();
    assert!(gather(&sandbox.review()).is_err());
    assert_eq!(git(&project, &["for-each-ref", "refs/remotes"]), "");
}

#[test]
fn git_runs_as_the_owner_of_the_repository() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some((project, sandbox)) = project(directory.path()) else { return };
    // A setting of the user that git would run as root.
    let mark = directory.path().join("who");
    fs::write(&mark, "").unwrap();
    fs::set_permissions(&mark, fs::Permissions::from_mode(0o666)).unwrap();
    let hooks = project.join(".git/hooks/reference-transaction");
    fs::write(&hooks, format!("#!/bin/sh\nid -u >{}\n", mark.display())).unwrap();
    fs::set_permissions(&hooks, fs::Permissions::from_mode(0o755)).unwrap();
    for path in Command::new("find").arg(&project).output().unwrap().stdout.split(|byte| *byte == b'\n') {
        let path = common::path(path);
        if !path.as_os_str().is_empty() {
            chown(path, Some(4242), Some(4242)).unwrap();
        }
    }
    let main = commit(&sandbox.overlay.root, "a", "three");
    gather(&sandbox.review()).unwrap().unwrap().fetch("demo").unwrap();
    assert_eq!(git(&project, &["rev-parse", "sandboxvm/demo/main"]), main);
    assert_eq!(fs::read_to_string(&mark).unwrap(), "", "no hook runs");
    let fetched = fs::metadata(project.join(".git/refs/remotes/sandboxvm/demo/main")).unwrap();
    assert_eq!((fetched.uid(), fetched.gid()), (4242, 4242));
}

#[test]
fn objects_that_only_take_memory_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_project, sandbox)) = project(directory.path()) else { return };
    let guest = &sandbox.overlay.root;
    commit(guest, "a", "three");
    let place = guest.join(".git/objects/ab/cdef0123456789abcdef0123456789abcdef01");
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let mut object = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    object.write_all(b"tree 100000000\0\0").unwrap();
    fs::write(place, object.finish().unwrap()).unwrap();
    let error = gather(&sandbox.review()).unwrap_err();
    assert!(error.to_string().contains("too large for its kind"), "{error}");
}

#[test]
fn the_owner_of_a_repository_leads_no_write_of_root_elsewhere() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some((project, sandbox)) = project(directory.path()) else { return };
    let _ = Command::new("chown").args(["-R", "4343:4343"]).arg(&project).status().unwrap();
    commit(&sandbox.overlay.root, "a", "three");
    let review = sandbox.review();
    // A file of root, and a user who puts links to it wherever a repository has files.
    let victim = directory.path().join("victim");
    fs::write(&victim, "root's").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    let (is_over, links) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for place in quarantines_of(4343) {
                    let info = place.join("repository/objects/info");
                    if fs::create_dir_all(&info).is_ok() && symlink(&victim, info.join("alternates")).is_ok() {
                        links.fetch_add(1, Ordering::Relaxed);
                        let _ = Command::new("chown").args(["-Rh", "4343:4343"]).arg(place.join("repository")).status();
                    }
                }
            }
        });
        // git may refuse a repository with such a link.
        let _ = gather(&review);
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(links.into_inner() > 0, "the user was too slow");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "root's");
    assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o600);
}

/// The temporary repositories of a user. Those of other tests belong to others.
fn quarantines_of(user: u32) -> Vec<PathBuf> {
    let all = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let all = all.filter(|entry| entry.file_name().to_string_lossy().starts_with("sandboxvm-commits-"));
    all.filter(|entry| entry.metadata().is_ok_and(|about| about.uid() == user)).map(|entry| entry.path()).collect()
}

#[test]
fn a_project_without_a_repository_has_no_commits() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("a"), "a").unwrap();
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "demo") else { return };
    let guest = &sandbox.overlay.root;
    git(guest, &["init", "-q", "-b", "main"]);
    commit(guest, "a", "one");
    assert!(matches!(gather(&sandbox.review()).unwrap_err(), CommitsError::NoRepository(_)));
}
