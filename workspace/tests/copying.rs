//! What a sandbox would see of a project, as the kernel mounts the layers, beside the project itself.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{Overlay, Random, change_randomly, describe, grow};
use sandboxvm_workspace::{CopyInError, CopyOptions, Index, Kind, ScanError, copy_in};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::Path,
    time::Instant,
};

const OWNER: (u32, u32) = (1000, 1001);

fn options() -> CopyOptions {
    CopyOptions::default()
}

/// Asserts that the index has exactly what the layers contain.
fn assert_contents(index: &Index, layers: &[std::path::PathBuf], project: &Path) {
    for (path, entry) in &index.entries {
        let Kind::File(content) = &entry.kind else { continue };
        let mut bytes = vec![0; content.size as usize];
        let layer = File::open(&layers[usize::from(content.layer)]).unwrap();
        layer.read_exact_at(&mut bytes, content.offset).unwrap();
        assert!(bytes == fs::read(project.join(common::path(path))).unwrap(), "{}", path.escape_ascii());
    }
}

#[test]
fn every_copy_of_a_changing_project_is_what_an_overlay_of_its_layers_shows() {
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), directory.path().join("cache"));
    let mut random = Random::new(17);
    fs::create_dir(&project).unwrap();
    grow(&project, &mut random, 300);
    let (mut deltas, mut mounted) = (0, 0);
    for round in 0..20 {
        let copied = copy_in(&project, &cache, OWNER, &options()).unwrap();
        let index = Index::read(&copied.index).unwrap();
        assert_eq!(index.layers.len(), copied.layers.len());
        assert!(copied.layers.len() <= 2);
        deltas += copied.layers.len() - 1;
        assert_contents(&index, &copied.layers, &project);
        let expected = describe(&project, None);
        assert_eq!(index.entries.len(), expected.len() - 1);
        if let Some(overlay) = Overlay::new(&copied.layers) {
            mounted += 1;
            let found = describe(&overlay.root, Some(OWNER));
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "round {round}");
            for (path, expected) in expected.iter().skip(1) {
                assert_eq!(found[path], *expected, "round {round}: {}", path.display());
            }
        }
        let count = [1, 3, 10, 0, 100][round % 5];
        change_randomly(&project, &mut random, count);
    }
    assert!(deltas > 3, "{deltas}");
    assert!(mounted > 0 || !rustix::process::geteuid().is_root());
}

#[test]
fn a_file_that_is_again_as_in_the_lowest_layer_lies_there() {
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), directory.path().join("cache"));
    fs::create_dir(&project).unwrap();
    for number in 0..9 {
        fs::write(project.join(format!("f{number}")), format!("content of {number}")).unwrap();
    }
    let mut layers = Vec::new();
    for mode in [0o644, 0o755, 0o644] {
        fs::set_permissions(project.join("f4"), fs::Permissions::from_mode(mode)).unwrap();
        let copied = copy_in(&project, &cache, OWNER, &options()).unwrap();
        assert_contents(&Index::read(&copied.index).unwrap(), &copied.layers, &project);
        layers.push(copied.layers.len());
    }
    assert_eq!(layers, [1, 2, 1]);
}

#[test]
fn copies_in_one_tick_of_the_clock_have_layers_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), directory.path().join("cache"));
    fs::create_dir(&project).unwrap();
    for number in 0..9 {
        fs::write(project.join(format!("f{number}")), format!("content of {number}")).unwrap();
    }
    for round in 0..30 {
        fs::write(project.join("f4"), format!("content {round}")).unwrap();
        let copied = copy_in(&project, &cache, OWNER, &options()).unwrap();
        assert_contents(&Index::read(&copied.index).unwrap(), &copied.layers, &project);
    }
}

#[test]
fn only_what_is_safe_in_the_guest_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), directory.path().join("cache"));
    fs::create_dir(&project).unwrap();
    fs::write(project.join("tool"), "x").unwrap();
    fs::set_permissions(project.join("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    symlink("/etc/passwd", project.join("link")).unwrap();
    symlink("/etc", project.join("etc")).unwrap();
    // What an apply is moving.
    fs::create_dir(project.join(".sandboxvm-apply-0123")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        project.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(project.join("socket")).unwrap();
    let copied = copy_in(&project, &cache, OWNER, &options()).unwrap();
    let index = Index::read(&copied.index).unwrap();
    let names: Vec<_> = index.entries.keys().map(|path| path.escape_ascii().to_string()).collect();
    assert_eq!(names, ["etc", "link", "tool"]);
    assert_eq!(index.entries[&b"tool"[..]].mode, 0o755);
    assert_eq!(copied.left_out, 2);
    assert!(copied.is_half_applied);
}

#[test]
fn ignored_files_are_left_out_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), directory.path().join("cache"));
    fs::create_dir_all(project.join("sub/target")).unwrap();
    fs::create_dir_all(project.join("target/deep")).unwrap();
    for (name, content) in [
        (".gitignore", "target/\n*.log\n"),
        (".sandboxvmignore", "secret\n"),
        ("sub/.gitignore", "!kept.log\n/only-here\n"),
        ("a.log", ""),
        ("sub/b.log", ""),
        ("sub/kept.log", ""),
        ("sub/only-here", ""),
        ("only-here", ""),
        ("secret", ""),
        ("target/deep/x", ""),
        ("sub/target/x", ""),
        ("main.rs", ""),
    ] {
        fs::write(project.join(name), content).unwrap();
    }
    let names = |options: &CopyOptions| -> Vec<String> {
        let copied = copy_in(&project, &cache, OWNER, options).unwrap();
        let index = Index::read(&copied.index).unwrap();
        index.entries.keys().map(|path| String::from_utf8(path.clone()).unwrap()).collect()
    };
    let both = names(&CopyOptions { gitignore: true, ..options() });
    let expected = [".gitignore", ".sandboxvmignore", "main.rs", "only-here", "sub", "sub/.gitignore", "sub/kept.log"];
    assert_eq!(both, expected);
    let all = names(&CopyOptions { sandboxvmignore: false, ..options() });
    assert_eq!(all.len(), 16);
    assert!(!names(&options()).contains(&"secret".to_owned()));
}

#[test]
fn limits_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), directory.path().join("cache"));
    fs::create_dir_all(project.join("a/b/c")).unwrap();
    fs::write(project.join("file"), [1; 5000]).unwrap();
    let scan = |options: CopyOptions| match copy_in(&project, &cache, OWNER, &options).unwrap_err() {
        CopyInError::Scan(error) => error,
        error => panic!("{error}"),
    };
    assert!(matches!(scan(CopyOptions { max_files: 3, ..options() }), ScanError::TooMany(3)));
    assert!(matches!(scan(CopyOptions { max_bytes: 4999, ..options() }), ScanError::TooLarge(4999)));
    assert!(matches!(scan(CopyOptions { max_depth: 2, ..options() }), ScanError::TooDeep { .. }));
    let error = copy_in(directory.path(), &cache, OWNER, &options()).unwrap_err();
    assert!(matches!(error, CopyInError::ContainsCache(_)), "{error}");
    assert!(copy_in(&project.join("none"), &cache, OWNER, &options()).is_err());
}

#[test]
fn the_cache_drops_the_projects_that_were_unused_for_the_longest_time() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let options = CopyOptions { cache_projects: 3, ..options() };
    let mut copies = Vec::new();
    for number in 0..6 {
        let project = directory.path().join(number.to_string());
        fs::create_dir(&project).unwrap();
        fs::write(project.join("file"), number.to_string()).unwrap();
        let copied = copy_in(&project, &cache, OWNER, &options).unwrap();
        // The next one is used in a later tick of the clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        // The first one stays in use.
        copies.push(if number == 0 { (copied.layers.clone(), Some(copied)) } else { (copied.layers.clone(), None) });
    }
    let is_there: Vec<_> = copies.iter().map(|(layers, _)| layers[0].exists()).collect();
    assert_eq!(is_there, [true, false, false, false, true, true]);
}

#[test]
fn a_full_disk_leaves_the_last_copy() {
    let Some(disk) = common::SmallDisk::new(4 << 20) else { return };
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), disk.root.join("cache"));
    fs::create_dir(&project).unwrap();
    fs::write(project.join("small"), "1").unwrap();
    let before = copy_in(&project, &cache, OWNER, &options()).unwrap();
    let layers = before.layers.clone();
    drop(before);
    fs::write(project.join("large"), vec![7; 8 << 20]).unwrap();
    let error = copy_in(&project, &cache, OWNER, &options()).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(layers[0].exists());
    fs::remove_file(project.join("large")).unwrap();
    copy_in(&project, &cache, OWNER, &options()).unwrap();
}

#[test]
#[ignore = "makes 100,000 files"]
fn a_hundred_thousand_files_take_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let (project, cache) = (directory.path().join("project"), directory.path().join("cache"));
    for outer in 0..1000 {
        let below = project.join(format!("{}/{outer}", outer % 30));
        fs::create_dir_all(&below).unwrap();
        for inner in 0..100 {
            fs::write(below.join(format!("file-{inner}.js")), format!("{outer} {inner}\n").repeat(40)).unwrap();
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    for what in ["first", "second", "third"] {
        let begin = Instant::now();
        let copied = copy_in(&project, &cache, OWNER, &options()).unwrap();
        eprintln!("{what}: {:?}, {} layers, {} files", begin.elapsed(), copied.layers.len(), copied.files);
        drop(copied);
        fs::write(project.join("0/0/file-5.js"), what).unwrap();
    }
}
