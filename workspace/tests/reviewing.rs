//! What a review says about random changes, beside the two trees; and its patches, applied by git.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{
    Random, change_randomly, grow,
    sandbox::{Sandbox, contents, copy_tree},
};
use sandboxvm_workspace::{ChangeKind, Extent, LayerLimits, Review};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "safe.directory=*"])
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Files as git records them.
fn as_git_sees(root: &Path) -> BTreeMap<PathBuf, (char, bool, Vec<u8>)> {
    let files = contents(root).into_iter().filter(|(path, file)| file.0 != 'd' && !path.starts_with(".git"));
    files.map(|(path, (kind, mode, content))| (path, (kind, mode & 0o100 != 0, content))).collect()
}

#[test]
fn a_review_of_random_changes_is_the_difference_of_both_trees() {
    let mut renamed = 0;
    for seed in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let (project, patched) = (directory.path().join("project"), directory.path().join("patched"));
        let mut random = Random::new(seed);
        fs::create_dir(&project).unwrap();
        grow(&project, &mut random, 80);
        let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
        change_randomly(&sandbox.overlay.root, &mut random, 40);
        let review = sandbox.review();
        let (before, after) = (contents(&project), contents(&sandbox.overlay.root));
        let mut expected: Vec<_> = before.keys().chain(after.keys()).collect();
        expected.retain(|path| before.get(*path) != after.get(*path));
        expected.sort();
        expected.dedup();
        let mut found = Vec::new();
        for change in &review.changes().files {
            found.push(common::path(&change.path));
            found.extend(change.from.as_deref().map(common::path));
            renamed += u32::from(change.kind() == ChangeKind::Renamed);
            review.extent(change).unwrap();
        }
        found.sort();
        assert_eq!(found, expected, "seed {seed}");

        git(directory.path(), &["init", "-q", "patched"]);
        copy_tree(&project.join("."), &patched);
        let mut patch = Vec::new();
        for change in &review.changes().files {
            review.write_patch(change, &mut patch).unwrap();
        }
        let path = directory.path().join("patch");
        fs::write(&path, &patch).unwrap();
        if !patch.is_empty() {
            git(&patched, &["add", "-A"]);
            // git knows no empty directories, and does not replace them.
            let find = ["-mindepth", "1", "-type", "d", "-not", "-path", "*/.git*", "-empty", "-delete"];
            assert!(Command::new("find").arg(&patched).args(find).status().unwrap().success());
            git(&patched, &["apply", "--index", "--binary", "--whitespace=nowarn", path.to_str().unwrap()]);
        }
        assert_eq!(as_git_sees(&patched), as_git_sees(&sandbox.overlay.root), "seed {seed}");
    }
    assert!(renamed > 0);
}

#[test]
fn each_kind_of_change_has_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir_all(project.join("tree/deep")).unwrap();
    fs::create_dir_all(project.join(".git/hooks")).unwrap();
    for name in ["same", "text", "mode", "gone", "old-name", "kind", "tree/a", "tree/deep/b"] {
        fs::write(project.join(name), format!("{name}\nsecond\nthird\n")).unwrap();
    }
    let Some(sandbox) = Sandbox::new(&project, directory.path(), "one") else { return };
    let root = &sandbox.overlay.root;
    let same = fs::read(root.join("same")).unwrap();
    fs::write(root.join("same"), same).unwrap();
    fs::write(root.join("text"), "text\n2\nthird\nfourth\n").unwrap();
    fs::set_permissions(root.join("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    fs::rename(root.join("old-name"), root.join("new-name")).unwrap();
    fs::remove_file(root.join("kind")).unwrap();
    std::os::unix::fs::symlink("text", root.join("kind")).unwrap();
    fs::remove_dir_all(root.join("tree")).unwrap();
    fs::create_dir(root.join("tree")).unwrap();
    fs::write(root.join("tree/new"), [0, 1, 2]).unwrap();
    fs::write(root.join(".git/hooks/post-checkout"), "#!/bin/sh\n").unwrap();
    let pipe = root.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let review = sandbox.review();
    let changes = review.changes();
    let kinds: Vec<_> = changes
        .files
        .iter()
        .map(|change| (change.path.escape_ascii().to_string(), change.kind(), review.extent(change).unwrap()))
        .collect();
    let lines = |added, removed| Extent::Lines { added, removed };
    let expected = [
        ("gone", ChangeKind::Deleted, lines(0, 3)),
        ("kind", ChangeKind::TypeChanged, lines(1, 3)),
        ("mode", ChangeKind::Mode, Extent::Nothing),
        ("new-name", ChangeKind::Renamed, Extent::Nothing),
        ("text", ChangeKind::Modified, lines(2, 1)),
        ("tree/a", ChangeKind::Deleted, lines(0, 3)),
        ("tree/deep", ChangeKind::Deleted, Extent::Nothing),
        ("tree/deep/b", ChangeKind::Deleted, lines(0, 3)),
        ("tree/new", ChangeKind::Added, Extent::Binary { before: 0, after: 3 }),
    ];
    assert_eq!(kinds, expected.map(|(path, kind, extent)| (path.to_owned(), kind, extent)));
    assert_eq!(changes.git.len(), 1);
    assert_eq!(changes.special, [b"pipe".to_vec()]);
    assert_eq!(changes.files[2].new.as_ref().unwrap().mode, 0o755, "no setuid");
}

#[test]
fn two_sandboxes_of_one_project_are_compared_with_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("a"), "a\n").unwrap();
    fs::write(project.join("b"), "b\n").unwrap();
    let Some(one) = Sandbox::new(&project, directory.path(), "one") else { return };
    let Some(two) = Sandbox::new(&project, directory.path(), "two") else { return };
    for sandbox in [&one, &two] {
        fs::write(sandbox.overlay.root.join("both"), "both\n").unwrap();
    }
    fs::write(one.overlay.root.join("a"), "first\n").unwrap();
    fs::remove_file(two.overlay.root.join("b")).unwrap();
    one.pack();
    two.pack();
    let review = Review::between(one.files(), two.files(), &LayerLimits::default()).unwrap();
    let mut patch = Vec::new();
    for change in &review.changes().files {
        review.write_patch(change, &mut patch).unwrap();
    }
    let patch = String::from_utf8(patch).unwrap();
    assert!(patch.contains("-first\n+a\n") && patch.contains("deleted file mode 100644"), "{patch}");
    assert_eq!(review.changes().files.len(), 2);
}
