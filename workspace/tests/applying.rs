//! Applying random changes to real projects, kills at every step, and a host that changes meanwhile.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{
    Random, change_randomly, grow,
    sandbox::{Sandbox, contents, copy_tree},
};
use sandboxvm_workspace::{
    ApplyError, ApplyOptions, ConflictKind, Left, Plan, PlanError, Reason, Recovered, Review, apply, apply_until, plan,
    recover, recover_until,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

type Contents = BTreeMap<PathBuf, (char, u32, Vec<u8>)>;

fn planned(review: &Review, options: &ApplyOptions) -> Plan {
    plan(review, options).unwrap()
}

fn everything() -> ApplyOptions {
    ApplyOptions::default()
}

fn only(paths: &[&str]) -> ApplyOptions {
    ApplyOptions { paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect(), merge: false }
}

/// A project, and a sandbox that changed it at random.
fn changed(seed: u64, directory: &Path, count: usize) -> Option<(PathBuf, Sandbox)> {
    let project = directory.join("project");
    let mut random = Random::new(seed);
    fs::create_dir(&project).unwrap();
    grow(&project, &mut random, 60);
    let sandbox = Sandbox::new(&project, directory, "one")?;
    change_randomly(&sandbox.overlay.root, &mut random, count);
    Some((project, sandbox))
}

fn is_clean(project: &Path, sandbox: &Sandbox) -> bool {
    let has_staging = fs::read_dir(project)
        .unwrap()
        .any(|file| file.unwrap().file_name().to_string_lossy().starts_with(".sandboxvm-apply-"));
    !has_staging && !sandbox.state.join("apply.journal").exists()
}

#[test]
fn an_applied_project_equals_the_sandbox() {
    for seed in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let Some((project, sandbox)) = changed(seed, directory.path(), 40) else { return };
        let review = sandbox.review();
        let plan = planned(&review, &everything());
        assert!(plan.conflicts().is_empty(), "seed {seed}: {:?}", plan.conflicts());
        apply(&review, &plan, &sandbox.state).unwrap();
        assert_eq!(contents(&project), contents(&sandbox.overlay.root), "seed {seed}");
        assert!(is_clean(&project, &sandbox));
        let again = planned(&review, &everything());
        assert!(again.planned().is_empty() && again.conflicts().is_empty(), "seed {seed}: {:?}", again.planned());
    }
}

/// Puts a project back.
fn restore(saved: &Path, project: &Path) {
    fs::remove_dir_all(project).unwrap();
    copy_tree(saved, project);
}

#[test]
fn a_kill_at_every_point_is_finished_or_undone() {
    let (mut finished, mut undone) = (0, 0);
    for seed in [3, 4] {
        let directory = tempfile::tempdir().unwrap();
        let Some((project, sandbox)) = changed(seed, directory.path(), 14) else { return };
        let saved = directory.path().join("saved");
        copy_tree(&project, &saved);
        let (before, after) = (contents(&project), contents(&sandbox.overlay.root));
        let review = sandbox.review();
        for point in 0.. {
            restore(&saved, &project);
            let inode = fs::metadata(&project).unwrap().ino();
            let plan = planned(&review, &everything());
            let mut left = point;
            let mut stop = || {
                left -= 1;
                left >= 0
            };
            match apply_until(&review, &plan, &sandbox.state, &mut stop) {
                Ok(()) => break,
                Err(ApplyError::Killed) => {}
                Err(error) => panic!("{error}"),
            }
            assert_eq!(fs::metadata(&project).unwrap().ino(), inode);
            // A second apply does not begin before the first one is finished or undone.
            assert!(matches!(apply(&review, &plan, &sandbox.state), Err(ApplyError::Pending)));
            // The recovery is killed too, further and further.
            let mut recovered = None;
            for further in 0.. {
                let mut left = further;
                let mut stop = || {
                    left -= 1;
                    left >= 0
                };
                match recover_until(&sandbox.state, &mut stop) {
                    Err(ApplyError::Killed) => {}
                    Ok(what) => {
                        recovered = what.or(recovered);
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            match recovered.unwrap() {
                Recovered::Finished => {
                    finished += 1;
                    assert_eq!(contents(&project), after, "seed {seed}, point {point}");
                }
                Recovered::Undone => {
                    undone += 1;
                    assert_eq!(contents(&project), before, "seed {seed}, point {point}");
                }
                other => panic!("{other:?}"),
            }
            assert!(is_clean(&project, &sandbox));
        }
    }
    assert!(finished > 10 && undone > 10, "{finished} {undone}");
}

#[test]
fn a_host_that_changes_during_an_apply_gets_everything_back() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir_all(project.join("gone")).unwrap();
    for name in ["a", "b", "c", "gone/x", "z"] {
        fs::write(project.join(name), name).unwrap();
    }
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    let root = &sandbox.overlay.root;
    for name in ["a", "b", "z"] {
        fs::write(root.join(name), format!("{name} of the sandbox")).unwrap();
    }
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::write(root.join("new"), "new").unwrap();
    fs::create_dir(root.join("made")).unwrap();
    fs::write(root.join("made/inside"), "made").unwrap();
    let review = sandbox.review();
    let saved = directory.path().join("saved");
    copy_tree(&project, &saved);
    let changes: [&dyn Fn(&Path); 4] = [
        &|project| fs::write(project.join("z"), "z of the host").unwrap(),
        &|project| fs::write(project.join("new"), "of the host").unwrap(),
        &|project| fs::remove_file(project.join("b")).unwrap(),
        &|project| {
            fs::remove_file(project.join("a")).unwrap();
            symlink("/etc/passwd", project.join("a")).unwrap();
        },
    ];
    for change in changes {
        restore(&saved, &project);
        let plan = planned(&review, &everything());
        change(&project);
        let before = contents(&project);
        let error = apply(&review, &plan, &sandbox.state).unwrap_err();
        assert!(matches!(error, ApplyError::Changed(_)), "{error}");
        assert_eq!(contents(&project), before);
        assert!(is_clean(&project, &sandbox));
    }
    // Between every two steps.
    for point in 0.. {
        restore(&saved, &project);
        let plan = planned(&review, &everything());
        let mut at = 0;
        let result = apply_until(&review, &plan, &sandbox.state, &mut || {
            if at == point {
                fs::write(project.join("z"), "z of the host, later").unwrap();
            }
            at += 1;
            true
        });
        assert!(is_clean(&project, &sandbox));
        let z = fs::read_to_string(project.join("z")).unwrap();
        match result {
            Ok(()) if at <= point => break,
            // The file was already replaced, and the host wrote to the new one.
            Ok(()) => assert!(z == "z of the host, later" && project.join("new").exists()),
            Err(ApplyError::Changed(_)) => {
                assert_eq!(z, "z of the host, later");
                assert_eq!(fs::read_to_string(project.join("a")).unwrap(), "a");
                assert!(project.join("gone/x").exists() && !project.join("made").exists());
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn conflicts_are_found_before_anything_is_applied_and_texts_are_merged() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir_all(project.join("dir")).unwrap();
    let text: String = (0..20).map(|line| format!("line {line}\n")).collect();
    for name in ["merges", "conflicts", "deleted-here", "deleted-there", "dir/x", "mode"] {
        fs::write(project.join(name), &text).unwrap();
    }
    fs::write(project.join("binary"), [0, 1]).unwrap();
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    let root = &sandbox.overlay.root;
    let replace = |path: PathBuf, line: &str, with: &str| fs::write(path, text.replace(line, with)).unwrap();
    replace(root.join("merges"), "line 3\n", "three\n");
    replace(project.join("merges"), "line 15\n", "fifteen\n");
    replace(root.join("conflicts"), "line 3\n", "three\n");
    replace(project.join("conflicts"), "line 3\n", "drei\nvier\n");
    fs::write(root.join("deleted-here"), "new").unwrap();
    fs::remove_file(project.join("deleted-here")).unwrap();
    fs::remove_file(root.join("deleted-there")).unwrap();
    fs::write(project.join("deleted-there"), "new").unwrap();
    fs::write(root.join("binary"), [0, 2]).unwrap();
    fs::write(project.join("binary"), [0, 3]).unwrap();
    fs::set_permissions(root.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(project.join("mode"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::remove_dir_all(root.join("dir")).unwrap();
    fs::write(root.join("dir"), "a file").unwrap();
    fs::write(project.join("dir/of-the-host"), "").unwrap();
    fs::write(root.join("both-new"), "same").unwrap();
    fs::write(project.join("both-new"), "same").unwrap();
    let review = sandbox.review();
    let conflicts = |plan: &Plan| -> Vec<(String, ConflictKind)> {
        plan.conflicts()
            .iter()
            .map(|conflict| (String::from_utf8(conflict.path.clone()).unwrap(), conflict.kind))
            .collect()
    };
    let content = ConflictKind::Content;
    let expected = [
        ("binary", content),
        ("conflicts", content),
        ("deleted-here", content),
        ("deleted-there", content),
        ("dir", ConflictKind::NotEmpty),
        ("mode", ConflictKind::Mode),
    ]
    .map(|(path, kind)| (path.to_owned(), kind));
    let merging = planned(&review, &ApplyOptions { merge: true, ..everything() });
    assert_eq!(conflicts(&merging), expected);
    assert_eq!(merging.already(), 1);
    let plain = planned(&review, &everything());
    assert_eq!(plain.conflicts().len(), 7);
    let of_both = plain.conflicts().iter().find(|conflict| conflict.path == b"conflicts").unwrap();
    let lines = |added, removed| Some(sandboxvm_workspace::Extent::Lines { added, removed });
    assert_eq!((of_both.host_extent, of_both.sandbox_extent), (lines(2, 1), lines(1, 1)));
    let before = contents(&project);
    assert!(matches!(apply(&review, &plain, &sandbox.state), Err(ApplyError::Conflicts(7))));
    assert_eq!(contents(&project), before);
    let one = planned(&review, &ApplyOptions { merge: true, ..only(&["merges"]) });
    assert!(one.planned()[0].is_merged);
    apply(&review, &one, &sandbox.state).unwrap();
    let merged = fs::read_to_string(project.join("merges")).unwrap();
    assert_eq!(merged, text.replace("line 3\n", "three\n").replace("line 15\n", "fifteen\n"));
    assert!(matches!(plan(&review, &only(&["none"])), Err(sandboxvm_workspace::PlanError::NoChanges(_))));
}

#[test]
fn chosen_paths_come_with_the_directories_that_they_need() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("kind"), "file").unwrap();
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    let root = &sandbox.overlay.root;
    fs::remove_file(root.join("kind")).unwrap();
    fs::create_dir_all(root.join("kind/deep")).unwrap();
    fs::write(root.join("kind/deep/one"), "1").unwrap();
    fs::write(root.join("kind/two"), "2").unwrap();
    fs::write(root.join("kinder"), "no").unwrap();
    let review = sandbox.review();
    apply(&review, &planned(&review, &only(&["kind/deep"])), &sandbox.state).unwrap();
    assert_eq!(fs::read(project.join("kind/deep/one")).unwrap(), b"1");
    assert!(!project.join("kind/two").exists() && !project.join("kinder").exists());
    apply(&review, &planned(&review, &only(&["kind"])), &sandbox.state).unwrap();
    assert!(project.join("kind/two").exists() && !project.join("kinder").exists());
}

#[test]
fn nothing_is_written_through_a_link_and_no_dangerous_file_goes_unnoticed() {
    let directory = tempfile::tempdir().unwrap();
    let (project, outside) = (directory.path().join("project"), directory.path().join("outside"));
    fs::create_dir_all(project.join("dir")).unwrap();
    fs::create_dir_all(project.join(".git")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(project.join("dir/file"), "1").unwrap();
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    let root = &sandbox.overlay.root;
    fs::write(root.join("dir/file"), "2").unwrap();
    fs::write(root.join("dir/new"), "2").unwrap();
    fs::write(root.join(".git/config"), "[core]\nfsmonitor = touch /tmp/owned\n").unwrap();
    fs::write(root.join(".envrc"), "rm -rf ~").unwrap();
    fs::write(root.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o6755)).unwrap();
    symlink("../../outside", root.join("dir/link")).unwrap();
    symlink("file", root.join("dir/fine")).unwrap();
    // The host has a link where the sandbox had a directory.
    fs::rename(project.join("dir"), outside.join("dir")).unwrap();
    symlink(outside.join("dir"), project.join("dir")).unwrap();
    let review = sandbox.review();
    let blocked = planned(&review, &everything());
    assert!(blocked.conflicts().iter().all(|conflict| conflict.kind == ConflictKind::Blocked));
    assert_eq!(blocked.conflicts().len(), 4);
    fs::remove_file(project.join("dir")).unwrap();
    fs::rename(outside.join("dir"), project.join("dir")).unwrap();
    let plan = planned(&review, &everything());
    let concerns: Vec<_> = plan
        .concerns()
        .iter()
        .map(|concern| (concern.path.escape_ascii().to_string(), matches!(concern.reason, Reason::LeavesRoot { .. })))
        .collect();
    assert_eq!(concerns, [(".envrc".to_owned(), false), ("dir/link".to_owned(), true), ("run".to_owned(), false)]);
    // The link is put in place between plan and apply.
    fs::rename(project.join("dir"), outside.join("dir")).unwrap();
    symlink(outside.join("dir"), project.join("dir")).unwrap();
    assert!(matches!(apply(&review, &plan, &sandbox.state), Err(ApplyError::Changed(_))));
    assert_eq!(fs::read(outside.join("dir/file")).unwrap(), b"1");
    assert!(!outside.join("dir/new").exists());
    fs::remove_file(project.join("dir")).unwrap();
    fs::rename(outside.join("dir"), project.join("dir")).unwrap();
    apply(&review, &planned(&review, &everything()), &sandbox.state).unwrap();
    assert_eq!(fs::metadata(project.join("run")).unwrap().mode() & 0o7777, 0o755);
    assert!(!project.join(".git/config").exists());
    assert_eq!(review.changes().git.len(), 1);
}

#[test]
fn a_full_disk_leaves_the_project_as_it_was() {
    let Some(disk) = common::SmallDisk::new(2 << 20) else { return };
    let directory = tempfile::tempdir().unwrap();
    let project = disk.root.join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("a"), "a").unwrap();
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    fs::write(sandbox.overlay.root.join("a"), "b").unwrap();
    fs::write(sandbox.overlay.root.join("large"), vec![1; 4 << 20]).unwrap();
    let review = sandbox.review();
    let before: Contents = contents(&project);
    let error = apply(&review, &planned(&review, &everything()), &sandbox.state).unwrap_err();
    assert!(matches!(error, ApplyError::NoSpace { needed, .. } if needed == (4 << 20) + 1), "{error}");
    assert_eq!(contents(&project), before);
    assert!(is_clean(&project, &sandbox));
    // Names of one file count once each, since each becomes a file.
    fs::write(sandbox.overlay.root.join("large"), vec![1; 512 << 10]).unwrap();
    for number in 0..9 {
        fs::hard_link(sandbox.overlay.root.join("large"), sandbox.overlay.root.join(format!("l{number}"))).unwrap();
    }
    let review = sandbox.review();
    let error = apply(&review, &planned(&review, &everything()), &sandbox.state).unwrap_err();
    assert!(matches!(error, ApplyError::NoSpace { .. }), "{error}");
    // What no sum shows: each of these takes a page.
    for number in 0..9 {
        fs::remove_file(sandbox.overlay.root.join(format!("l{number}"))).unwrap();
    }
    for number in 0..600 {
        fs::write(sandbox.overlay.root.join(format!("small{number}")), "1").unwrap();
    }
    let review = sandbox.review();
    let error = apply(&review, &planned(&review, &everything()), &sandbox.state).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(contents(&project), before);
    assert!(is_clean(&project, &sandbox));
    assert_eq!(recover(&sandbox.state).unwrap(), None);
}

/// Returns the contents of the files in a directory.
fn files_in(directory: &Path) -> Vec<String> {
    let mut files: Vec<_> =
        fs::read_dir(directory).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    files.sort();
    files
}

fn kept_in(project: &Path, left: &Left) -> PathBuf {
    project.join(common::path(left.kept.as_ref().unwrap()))
}

/// Applies until a checkpoint at which `is_there` is true, and stops there as a kill would.
fn apply_to(review: &Review, sandbox: &Sandbox, is_there: &dyn Fn() -> bool) {
    let killed = apply_until(review, &planned(review, &everything()), &sandbox.state, &mut || !is_there());
    assert!(matches!(killed, Err(ApplyError::Killed)));
}

#[test]
fn a_directory_that_moves_after_a_kill_loses_no_file() {
    for is_whole in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let project = directory.path().join("project");
        fs::create_dir_all(project.join("src")).unwrap();
        for name in ["src/a", "src/b"] {
            fs::write(project.join(name), name).unwrap();
        }
        let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
        for name in ["src/a", "src/b"] {
            fs::write(sandbox.overlay.root.join(name), "new").unwrap();
        }
        let review = sandbox.review();
        let last = project.join(if is_whole { "src/b" } else { "src/a" });
        apply_to(&review, &sandbox, &|| fs::read_to_string(&last).unwrap() == "new");
        fs::rename(project.join("src"), project.join("lib")).unwrap();
        let recovered = recover(&sandbox.state).unwrap().unwrap();
        assert_eq!(fs::read(project.join("lib/a")).unwrap(), b"new");
        if is_whole {
            assert_eq!(recovered, Recovered::Finished);
            assert!(is_clean(&project, &sandbox));
            continue;
        }
        let Recovered::NotUndone(left) = recovered else { panic!("{recovered:?}") };
        assert_eq!(left.paths, [b"src/a"]);
        assert_eq!(files_in(&kept_in(&project, &left)), ["src/a"]);
        assert_eq!(fs::read(project.join("lib/b")).unwrap(), b"src/b");
        assert!(recover(&sandbox.state).unwrap().is_none());
    }
}

#[test]
fn undoing_leaves_what_the_host_wrote_and_undoes_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    for name in ["a", "b", "r", "z"] {
        fs::write(project.join(name), name).unwrap();
    }
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    for name in ["a", "b", "new", "z"] {
        fs::write(sandbox.overlay.root.join(name), "of the sandbox").unwrap();
    }
    fs::remove_file(sandbox.overlay.root.join("r")).unwrap();
    let review = sandbox.review();
    let result = apply_until(&review, &planned(&review, &everything()), &sandbox.state, &mut || {
        // In place: the inodes stay.
        if project.join("new").exists() && fs::read(project.join("z")).unwrap() == b"z" {
            for name in ["a", "new", "r", "z"] {
                fs::write(project.join(name), "mine").unwrap();
            }
        }
        true
    });
    let Err(ApplyError::NotUndone(left)) = result else { panic!("{result:?}") };
    assert_eq!(left.paths, [&b"new"[..], b"a", b"r"]);
    assert_eq!(files_in(&kept_in(&project, &left)), ["a", "r"]);
    assert!(left.to_string().contains(".sandboxvm-apply-"), "{left}");
    for (name, content) in [("a", "mine"), ("b", "b"), ("new", "mine"), ("r", "mine"), ("z", "mine")] {
        assert_eq!(fs::read_to_string(project.join(name)).unwrap(), content, "{name}");
    }
    // Nothing else is applied to it until the user looked.
    assert!(matches!(plan(&review, &everything()), Err(PlanError::OtherApply(_))));
}

#[test]
fn a_staging_directory_that_is_gone_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    for name in ["a", "z"] {
        fs::write(project.join(name), name).unwrap();
    }
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    for name in ["a", "z"] {
        fs::write(sandbox.overlay.root.join(name), "new").unwrap();
    }
    let review = sandbox.review();
    apply_to(&review, &sandbox, &|| fs::read(project.join("a")).unwrap() == b"new");
    for file in fs::read_dir(&project).unwrap().map(|file| file.unwrap().path()) {
        if file.is_dir() {
            fs::remove_dir_all(file).unwrap();
        }
    }
    assert_eq!(recover(&sandbox.state).unwrap(), Some(Recovered::StagingGone { done: 1, steps: 2 }));
    assert!(is_clean(&project, &sandbox));
}

#[test]
fn applied_files_can_be_read_by_their_owner() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("old"), "old").unwrap();
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    let root = &sandbox.overlay.root;
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/new"), "new").unwrap();
    for name in ["old", "d/new", "d"] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o0)).unwrap();
    }
    let review = sandbox.review();
    apply(&review, &planned(&review, &everything()), &sandbox.state).unwrap();
    for (name, mode) in [("old", 0o400), ("d/new", 0o400), ("d", 0o700)] {
        assert_eq!(fs::metadata(project.join(name)).unwrap().mode() & 0o7777, mode, "{name}");
    }
    assert!(planned(&review, &everything()).planned().is_empty());
}

#[test]
fn what_the_host_has_makes_a_change_dangerous() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    for name in ["cfg", "b", "c"] {
        fs::create_dir_all(project.join(name)).unwrap();
    }
    symlink("cfg", project.join(".vscode")).unwrap();
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    for name in ["cfg/tasks.json", "b/config", "c/config", "c/tasks.json"] {
        fs::write(sandbox.overlay.root.join(name), "x").unwrap();
    }
    symlink("cfg", sandbox.overlay.root.join(".cargo")).unwrap();
    fs::create_dir(project.join("b/objects")).unwrap();
    let review = sandbox.review();
    let plan = planned(&review, &everything());
    let paths: Vec<_> = plan.concerns().iter().map(|concern| concern.path.escape_ascii().to_string()).collect();
    assert_eq!(paths, [".cargo", "b/config", "cfg/tasks.json"]);
    let link = plan.planned().iter().find(|planned| planned.path == b".cargo").unwrap();
    assert_eq!(link.target.as_deref(), Some(&b"cfg"[..]));
}
