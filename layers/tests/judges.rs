//! What others make of the same layers, and of our images: the kernel, fsck.erofs, and umoci.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{Mounted, describe, fsck, oci::umoci, tar, write_image};
use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

fn run(script: &str, directory: &Path) {
    let status = Command::new("sh").args(["-euc", script]).current_dir(directory).status().unwrap();
    assert!(status.success(), "{script}");
}

/// Three layers with everything that images have.
fn layers(directory: &Path) -> Vec<Vec<u8>> {
    let layer = |name: &str, script: &str, options: &[&str]| {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        run(script, &path);
        run("find . -newermt 2000-01-01 ! -type l -exec touch -d '2024-02-03 04:05:06.123456789' {} +", &path);
        tar(&path, options)
    };
    let long = "x".repeat(200);
    vec![
        layer(
            "lower",
            &format!(
                "mkdir -p bin usr/lib etc/deep/er gone opaque/old many dev
                printf content >bin/tool; chmod 6755 bin/tool; ln bin/tool bin/other; ln -s ../bin/tool etc/link
                chown 1000:1001 etc/deep; chmod 1777 etc/deep; printf 1 >gone/file; printf 2 >opaque/old/file
                ln -s usr/lib lib; printf so >usr/lib/one; ln -s /{long}/{long}/{long} etc/long
                dd if=/dev/urandom of=big bs=1000 count=3000 2>/dev/null; truncate -s 5000000 holes
                printf end | dd of=holes bs=1 seek=3000000 conv=notrunc 2>/dev/null
                for i in $(seq 600); do printf $i >many/{long}$i; done; : >empty; printf 3 >etc/replaced
                mknod dev/null c 1 3; mknod dev/disk b 259 70000; mkfifo dev/fifo; mkdir etc/kind; printf 4 >etc/kind/x
                setfattr -n user.note -v hello bin/tool; setfattr -n user.dir -v there etc
                head -c 4096 /dev/zero >page; touch -d '1960-01-01 00:00:00.5' empty"
            ),
            &["--format=pax"],
        ),
        layer(
            "middle",
            "mkdir -p opaque gone etc usr/lib; : >opaque/.wh..wh..opq; printf new >opaque/new
            : >.wh.gone; printf back >gone/back; printf 33333 >etc/replaced; printf file >etc/kind
            : >etc/deep.wh.not; printf two >usr/lib/two",
            &["--format=gnu"],
        ),
        layer(
            "upper",
            "mkdir -p etc/kind bin; printf 5 >etc/kind/y; : >bin/.wh.tool; printf n >bin/new",
            &["--format=ustar"],
        ),
    ]
}

fn have(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

#[test]
fn a_mounted_image_equals_the_tree_that_umoci_unpacks() {
    if !rustix::process::geteuid().is_root() || !have("umoci") {
        eprintln!("skipped: needs root, for devices and owners, and umoci");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let layers = layers(directory.path());
    let image = directory.path().join("image");
    write_image(&layers, &image);
    fsck(&image);
    let expected = describe(&umoci(&layers, directory.path()));
    let Some(mounted) = Mounted::new(&image) else { return };
    let found = describe(&mounted.root);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, expected) in &expected {
        assert_eq!(found[path], *expected, "{}", path.display());
    }
    assert!(expected.len() > 600);
}

#[test]
fn all_forms_of_sparse_files_have_the_same_content() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    run(
        "truncate -s 9000000 holes; printf a | dd of=holes bs=1 seek=4097 conv=notrunc 2>/dev/null
        for i in $(seq 40); do printf b | dd of=holes bs=1 seek=${i}00000 conv=notrunc 2>/dev/null; done",
        &tree,
    );
    let content = fs::read(tree.join("holes")).unwrap();
    for options in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let archive = tar(&tree, options);
        assert!(archive.len() < 2_000_000, "{options:?} is not sparse");
        let found = common::tree(&[archive]);
        assert!(found["holes"].content == content, "{options:?}");
    }
}

#[test]
fn an_entry_below_a_symbolic_link_lies_where_umoci_puts_it() {
    if !rustix::process::geteuid().is_root() || !have("umoci") {
        eprintln!("skipped: needs root, for owners, and umoci");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let lower = directory.path().join("lower");
    fs::create_dir_all(lower.join("usr/lib")).unwrap();
    symlink("usr/lib", lower.join("lib")).unwrap();
    symlink("/../../usr", lower.join("absolute")).unwrap();
    symlink("new/place", lower.join("dangling")).unwrap();
    let upper = common::archive(&[
        common::file("lib/one", "1"),
        common::file("absolute/lib/two", "2"),
        common::file("dangling/three", "3"),
    ]);
    let layers = [tar(&lower, &[]), upper];
    let found: Vec<_> = common::tree(&layers).into_keys().filter(|path| !path.is_empty()).collect();
    let expected = describe(&umoci(&layers, directory.path()));
    let expected: Vec<_> =
        expected.keys().map(|path| path.display().to_string()).filter(|path| !path.is_empty()).collect();
    assert_eq!(found, expected);
    assert!(found.contains(&"usr/lib/two".to_owned()) && found.contains(&"new/place/three".to_owned()));
}
