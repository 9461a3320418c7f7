//! Applying random changes to real projects, kills at every step, and a host that changes meanwhile.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{
    Random, change_randomly, grow,
    sandbox::{Sandbox, contents, copy_tree},
};
use sandboxvm_workspace::{
    ApplyError, ApplyOptions, ConflictKind, Plan, Reason, Recovered, Review, apply, apply_until, plan, recover,
    recover_until,
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
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(contents(&project), before);
    assert!(is_clean(&project, &sandbox));
    assert_eq!(recover(&sandbox.state).unwrap(), None);
}
