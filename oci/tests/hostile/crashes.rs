//! Processes that are killed while they load or collect garbage, and disks that are full. Each
//! process is this program again, running one of the ignored tests below.

use crate::{
    archives::archive_of,
    server::{Image, Server},
};
use sandboxvm_oci::{Digest, Images, Limits, PullOptions, Silent, registry::RegistryOptions};
use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

/// What a process is to do, as words.
const VARIABLE: &str = "SANDBOXVM_OCI_TEST";

/// Returns the command that runs an ignored test of this program.
fn process(test: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("crashes::{test}"), "--ignored", "--nocapture"]);
    command.env(VARIABLE, words.join(" "));
    command
}

fn words() -> Vec<String> {
    env::var(VARIABLE).unwrap_or_default().split(' ').map(str::to_owned).collect()
}

fn plain(root: &str) -> Images {
    Images::open(root, Limits::default(), RegistryOptions::default()).unwrap()
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Checks that every tag leads to a complete image, and that every blob is what its name says.
fn check(root: &Path, images: &Images) {
    for blob in fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let digest = Digest::of(&fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), digest.hex());
    }
    for image in images.list().unwrap() {
        let details = images.inspect(&image.tag.reference).unwrap();
        for layer in details.layers {
            images.store().open_blob(layer.digest).unwrap();
        }
    }
}

#[test]
#[ignore = "run by killed_loads_and_collections_leave_nothing_corrupt"]
fn load_and_collect_without_end() {
    let words = words();
    let images = plain(&words[0]);
    let archives: Vec<_> = words[1..].iter().map(|path| fs::read(path).unwrap()).collect();
    loop {
        for archive in &archives {
            let loaded = images.load(&archive[..], None).unwrap();
            images.prune(&[]).unwrap();
            images.remove(&loaded[0].references[0].to_string(), &[]).unwrap();
        }
    }
}

#[test]
fn killed_loads_and_collections_leave_nothing_corrupt() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("images");
    let images = plain(root.to_str().unwrap());
    // All share no blob but one: the first two have the same layer.
    let (kept, other) = (Image::new(50_000, 1), Image::new(300_000, 2));
    images.load(&archive_of(&kept, "reg.example/kept:1")[..], None).unwrap();
    let paths: Vec<_> = [(&kept, "same"), (&other, "other")]
        .map(|(image, name)| {
            let path = home.path().join(name);
            fs::write(&path, archive_of(image, &format!("reg.example/{name}:1"))).unwrap();
            path.display().to_string()
        })
        .into();
    let mut random = fastrand::Rng::with_seed(11);
    let mut left = 0;
    for _ in 0..16 {
        let mut process = process("load_and_collect_without_end", &[root.to_str().unwrap(), &paths[0], &paths[1]]);
        let mut child = process.stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(random.u64(200..1300)));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        check(&root, &images);
        left += count(&root.join("partial")) + count(&root.join("holds"));
        images.inspect("reg.example/kept:1").unwrap();
    }
    assert!(left > 0, "no process was killed while it worked");
    for image in images.list().unwrap() {
        if image.tag.reference != "reg.example/kept:1" {
            images.remove(&image.tag.reference, &[]).unwrap();
        }
    }
    images.prune(&[]).unwrap();
    check(&root, &images);
    let counts = ["blobs/sha256", "partial", "holds"].map(|name| count(&root.join(name)));
    assert_eq!(counts, [3, 0, 0]);
}

/// Loads while other processes collect garbage and load the same.
#[test]
#[ignore = "run by concurrent_loads_and_collections_succeed"]
fn load_and_remove_some_times() {
    let words = words();
    let images = plain(&words[0]);
    let archive = fs::read(&words[1]).unwrap();
    let name = images.reference(&words[2]).unwrap();
    for _ in 0..15 {
        images.load(&archive[..], Some(&name)).unwrap();
        let details = images.inspect(&words[2]).unwrap();
        for layer in details.layers {
            images.store().open_blob(layer.digest).unwrap();
        }
        images.remove(&words[2], &[]).unwrap();
    }
}

#[test]
fn concurrent_loads_and_collections_succeed() {
    let home = tempfile::tempdir().unwrap();
    let (root, archive) = (home.path().join("images"), home.path().join("archive"));
    fs::write(&archive, archive_of(&Image::new(50_000, 1), "reg.example/a:1")).unwrap();
    let [root, archive] = [&root, &archive].map(|path| path.to_str().unwrap());
    let start = |name: &&str| {
        let mut process = process("load_and_remove_some_times", &[root, archive, &format!("reg.example/{name}")]);
        process.stdout(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = ["a", "b", "c"].iter().map(start).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let images = plain(root);
    images.prune(&[]).unwrap();
    assert_eq!(count(&Path::new(root).join("blobs/sha256")), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by full_disk_fails_pulls_and_loads_and_leaves_nothing"]
async fn pull_and_load_with_a_full_disk() {
    let words = words();
    let (root, host, archive) = (&words[0], &words[1], &words[2]);
    let with = RegistryOptions { plain_http: vec![host.clone()], ..RegistryOptions::default() };
    let images = Images::open(format!("{root}/images"), Limits::default(), with).unwrap();
    let pull =
        async |name: &str| images.pull(&format!("{host}/{name}:1"), PullOptions::default(), Arc::new(Silent)).await;
    let check = |error: String| {
        assert!(error.ends_with("the disk is full"), "{error}");
        assert_eq!(count(&Path::new(root).join("images/partial")), 0);
    };
    check(pull("large").await.unwrap_err().to_string());
    check(images.load(fs::File::open(archive).unwrap(), None).unwrap_err().to_string());
    images.prune(&[]).unwrap();
    assert!(images.list().unwrap().is_empty());
    // The room that the failures had is free again.
    pull("small").await.unwrap();
    println!("both failed as they should");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_fails_pulls_and_loads_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (large, small) = (Image::new(4_000_000, 1), Image::new(1_500_000, 2));
    let archive = home.path().join("archive");
    fs::write(&archive, archive_of(&large, "reg.example/large:1")).unwrap();
    let server = Server::start(move |request, stream| {
        if request.path.contains("/large/") { large.serve(request, stream) } else { small.serve(request, stream) }
    });
    let disk = home.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let [disk, archive] = [&disk, &archive].map(|path| path.to_str().unwrap());
    // A mount that only this process has, which needs no root.
    let mount = "mount -t tmpfs -o size=2m tmpfs \"$0\" || { echo cannot mount; exit 0; }; exec \"$@\"";
    let inner = process("pull_and_load_with_a_full_disk", &[disk, &server.host(), archive]);
    let mut outer = Command::new("unshare");
    outer.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount, disk]);
    outer.arg(inner.get_program()).args(inner.get_args());
    outer.env(VARIABLE, [disk, &server.host(), archive].join(" "));
    let output = outer.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("cannot mount") || String::from_utf8_lossy(&output.stderr).contains("unshare failed") {
        println!("skipped: no user namespaces here");
        return;
    }
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("both failed as they should"), "{text}");
}
