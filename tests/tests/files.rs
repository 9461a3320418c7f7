//! Files between host and sandbox: copied by the CLI, worked on through the library.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use rustix::{
    fs::{AtFlags, Timespec, Timestamps, XattrFlags, getxattr, setxattr, utimensat},
    process::Signal,
};
use sandboxvm_manager::{FileDone, FileError, Files};
use sandboxvm_protocol::agent::{
    CText,
    files::{ChangeKind, FileErrorKind, FileKind, FilePath},
};
use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    library::{Library, run},
    memory::Sampler,
    processes,
};
use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// What the CLI may keep resident, whatever passes through it.
const CLI_LIMIT_KIB: u64 = 16 * 1024;
/// What the VMM may keep resident beside its guest's memory.
const VMM_LIMIT_KIB: u64 = 6 * 1024;
/// What the process that serves a request in the guest may ever have had resident.
const WORKER_LIMIT_KIB: u64 = 4 * 1024;
const SOON: Duration = Duration::from_secs(60);

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with everything in it that is to survive.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("plain"), "hello\n").unwrap();
    fs::set_permissions(root.join("plain"), Permissions::from_mode(0o751)).unwrap();
    fs::write(root.join("sub/deep").join("n".repeat(150)), vec![7; 100_000]).unwrap();
    fs::hard_link(root.join("plain"), root.join("sub/twin")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("../plain", root.join("sub/relative")).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(20 << 20)).unwrap();
    sparse.write_all(b"data in a desert").unwrap();
    sparse.set_len(50 << 20).unwrap();
    setxattr(root.join("plain"), "user.test", b"attribute", XattrFlags::empty())
        .expect("the temporary directory is on a file system with attributes");
    set_time(&root.join("plain"), 1_000_000_000, 123_456_789);
    set_time(&root.join("absolute"), 1_234_567_890, 1);
    fs::set_permissions(root.join("sub"), Permissions::from_mode(0o1750)).unwrap();
    set_time(&root.join("sub"), 1_111_111_111, 0);
}

/// Everything about a tree that is to survive, by path.
fn description(root: &Path) -> BTreeMap<String, String> {
    let (mut all, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    describe(root, root, &mut all, &mut inodes);
    all
}

fn describe(root: &Path, path: &Path, all: &mut BTreeMap<String, String>, inodes: &mut BTreeMap<u64, usize>) {
    let about = fs::symlink_metadata(path).unwrap();
    let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    let kind = about.file_type();
    let content = if kind.is_symlink() {
        format!("-> {:?}", fs::read_link(path).unwrap())
    } else if kind.is_dir() {
        "directory".to_owned()
    } else {
        let names = *inodes.entry(about.ino()).and_modify(|names| *names += 1).or_insert(1);
        let mut attribute = [0; 64];
        let len = getxattr(path, "user.test", &mut attribute[..]).unwrap_or(0);
        let attribute = String::from_utf8_lossy(&attribute[..len]).into_owned();
        let sum =
            fs::read(path).unwrap().iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
        format!("{} {sum} links={} {} {attribute}", about.len(), about.nlink(), names > 0)
    };
    let mode = if kind.is_symlink() { 0 } else { about.mode() & 0o7777 };
    all.insert(name, format!("{mode:o} {}.{} {content}", about.mtime(), about.mtime_nsec()));
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            describe(root, &entry.unwrap().path(), all, inodes);
        }
    }
}

fn temporaries(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".sandboxvm-")).count()
}

fn cp(home: &Home, arguments: &[&str]) -> sandboxvm_tests::cli::Invocation {
    home.cli(["cp"]).args(arguments)
}

/// Under 90 seconds together with the others: one sandbox for everything that the CLI copies.
#[test]
fn trees_are_copied_both_ways_and_streamed() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let work = home.scratch("work");
    fs::create_dir(&work).unwrap();
    let at = |name: &str| work.join(name).to_str().unwrap().to_owned();
    plant(&work.join("tree"));

    // Into a directory that is there, and out to a name that is not.
    let _ = cp(&home, &["-r", &at("tree"), "demo:/home"]).run().succeeds();
    let out = cp(&home, &["demo:/home/tree", &at("back")]).run().succeeds();
    assert_eq!((out.out(), out.err()), (String::new(), String::new()));
    assert_eq!(description(&work.join("back")), description(&work.join("tree")));
    assert!(fs::metadata(work.join("back/sparse")).unwrap().blocks() < 100, "holes survive");
    let look = sandbox.sh("cd /home/tree && stat -c '%a %Y %U %h' plain sub && du -k sparse && readlink absolute");
    assert!(
        look.out().starts_with("751 1000000000 root 2\n1750 1111111111 root 3\n")
            && look.out().ends_with("/etc/passwd\n"),
        "{}",
        look.transcript()
    );

    // A file's own bytes, and a tree as an archive, on stdout; an archive from stdin.
    let plain = cp(&home, &["demo:/home/tree/plain", "-"]).run().succeeds();
    assert_eq!(plain.out(), "hello\n");
    let archive = cp(&home, &["demo:/home/tree/sub", "-"]).run().succeeds();
    fs::write(work.join("sub.tar"), &archive.stdout).unwrap();
    let listed = Command::new("tar").arg("-tf").arg(work.join("sub.tar")).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("sub/twin\n") && listed.contains("sub/relative\n"), "{listed}");
    let theirs =
        Command::new("tar").args(["-cf", "-", "plain", "sub"]).current_dir(work.join("tree")).output().unwrap();
    let _ = cp(&home, &["-u", "nobody", "-", "demo:/tmp"]).input(theirs.stdout).run().succeeds();
    let owners = sandbox.sh("stat -c '%U %a %h' /tmp/plain /tmp/sub/twin; test -z \"$(ls -A /tmp | grep sandboxvm-)\"");
    assert_eq!(owners.succeeds().out(), "nobody 751 2\nnobody 751 2\n");

    // As somebody who may not, to where nothing is, of what is not there, and from what is no sandbox.
    let plain = at("tree/plain");
    let _ =
        cp(&home, &["-u", "nobody", &plain, "demo:/root/x"]).run().fails_with(&["Permission denied", "another user"]);
    let _ = cp(&home, &[&plain, "demo:/new/"]).run().fails_with(&["no such directory"]);
    let _ = cp(&home, &["demo:/none", &at("x")]).run().fails_with(&["/none in the sandbox", "No such file"]);
    let _ = cp(&home, &[&plain, "none:/x"]).run().fails_with(&["none"]);
    let _ = cp(&home, &[&plain, &at("y")]).run().fails_with(&["SANDBOX:PATH"]);

    let events = home.cli(["events", "demo"]).run().succeeds().out();
    assert!(events.contains(" files act=\"extract\" path=\"/tmp\" user=\"nobody\""), "{events}");

    interrupted(&home, &sandbox, &work);
    hostile(&home, &sandbox, &work);
    sandbox.remove();
    home.assert_nothing_left();
}

/// What a copy that breaks leaves: the old file.
fn interrupted(home: &Home, sandbox: &Sandbox<'_>, work: &Path) {
    // Into the sandbox, killed with half of a file on its way.
    let _ = sandbox.sh("mkdir /home/old && echo old > /home/old/file").succeeds();
    fs::create_dir(work.join("new")).unwrap();
    fs::write(work.join("new/file"), vec![b'n'; 300_000]).unwrap();
    let archive = Command::new("tar").args(["-cf", "-", "file"]).current_dir(work.join("new")).output().unwrap().stdout;
    let mut killed = cp(home, &["-", "demo:/home/old"]).open_stdin().spawn();
    killed.write(&archive[..200_000]);
    let half = || (sandbox.sh("ls -A /home/old").out().contains(".sandboxvm-")).then_some(());
    assert!(eventually(SOON, half).is_some(), "it is not being written");
    killed.signal(Signal::KILL);
    assert_eq!(killed.finish().signal(), Some(9));
    let old = || (sandbox.sh("ls -A /home/old; cat /home/old/file").out() == "file\nold\n").then_some(());
    assert!(eventually(SOON, old).is_some(), "{}", sandbox.sh("ls -lA /home/old").transcript());

    // Out of it, interrupted as by Ctrl-C.
    let local = work.join("local");
    fs::create_dir(&local).unwrap();
    fs::write(local.join("file"), "old").unwrap();
    let target = local.join("file").to_str().unwrap().to_owned();
    let big = "demo:/usr/bin/python3.11";
    let running = cp(home, &["-L", big, &target]).spawn();
    assert!(
        eventually(SOON, || processes::writes_in(running.pid(), &local).then_some(())).is_some(),
        "it is not being written"
    );
    running.signal(Signal::INT);
    let _ = running.finish().exits(130);
    assert_eq!((temporaries(&local), fs::read(local.join("file")).unwrap()), (0, b"old".to_vec()));
    let running = cp(home, &["-L", big, &target]).spawn();
    assert!(
        eventually(SOON, || processes::writes_in(running.pid(), &local).then_some(())).is_some(),
        "it is not being written"
    );
    running.signal(Signal::KILL);
    assert_eq!(running.finish().signal(), Some(9));
    assert_eq!((temporaries(&local), fs::read(local.join("file")).unwrap()), (0, b"old".to_vec()));
}

/// A guest that wants more than it is given.
fn hostile(home: &Home, sandbox: &Sandbox<'_>, work: &Path) {
    let out = work.join("out");
    fs::create_dir(&out).unwrap();
    let outside = work.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    // A link is planted by one copy, for the next to go through.
    let plant =
        format!("mkdir -p /evil && ln -s {} /evil/d && ln -s {}/victim /evil/f", outside.display(), outside.display());
    let _ = sandbox.sh(&format!("{plant} && mkfifo /evil/pipe && truncate -s 1T /huge")).succeeds();
    let evil = out.to_str().unwrap();
    let planted = cp(home, &["demo:/evil", evil]).run().succeeds();
    assert!(planted.err().contains("skipped 1 sockets, devices or named pipes"), "{}", planted.transcript());
    assert!(fs::symlink_metadata(out.join("evil/d")).unwrap().is_symlink());
    let swap = "cd /evil && rm d f && mkdir d && echo x > d/victim && echo x > d/new && echo mine > f";
    let _ = sandbox.sh(swap).succeeds();
    let _ = cp(home, &["demo:/evil/.", &format!("{evil}/evil")]).run().fails_with(&["Not a directory"]);
    let _ = cp(home, &["demo:/evil/f", &format!("{evil}/evil/f")]).run().succeeds();
    assert_eq!(fs::read_to_string(out.join("evil/f")).unwrap(), "mine\n", "the link itself was replaced");
    let _ = cp(home, &["demo:/evil/d", &format!("{evil}/evil")]).run().fails_with(&["symbolic link"]);
    let names: Vec<_> = fs::read_dir(&outside).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["victim"]);
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");

    // More than the caps.
    let huge = out.join("huge").to_str().unwrap().to_owned();
    let _ = cp(home, &["demo:/huge", &huge]).run().fails_with(&["17179869184 bytes", "--max-size"]);
    let many = ["--max-files", "3", "demo:/etc", &huge];
    let _ = cp(home, &many).run().fails_with(&["more than 3", "--max-files"]);
    assert_eq!(temporaries(&out), 0);

    // A directory that never stands still: the copy ends all the same.
    let busy = "mkdir /busy && cd /busy && echo up && while :; do for n in 1 2 3 4 5 6; do echo $n > a$n; mkdir -p d$n; \
                done; rm -rf a* d*; done";
    let mut busy = sandbox.spawn_sh(busy);
    busy.wait_for_stdout("up\n");
    let _ = cp(home, &["demo:/busy", out.join("busy").to_str().unwrap()]).run().succeeds();
    busy.signal(Signal::TERM);
    let _ = busy.finish();
    // A name that would drive a terminal is shown escaped.
    let _ = sandbox.sh("mkdir /ansi && mkfifo \"/ansi/$(printf '\\033[31mred')\"").succeeds();
    let shown = cp(home, &["demo:/ansi/\x1b[31mred", &huge]).run().fails_with(&["regular file"]);
    assert!(!shown.err().contains('\x1b'), "{}", shown.transcript());
}

fn path(text: &str) -> FilePath {
    FilePath::try_from(text).unwrap()
}

async fn content(files: &Files<'_>, from: &str) -> Result<Vec<u8>, FileError> {
    let mut stream = files.read(path(from)).await?;
    let mut all = Vec::new();
    while let Some(bytes) = stream.next().await? {
        all.extend(bytes);
    }
    Ok(all)
}

/// What the HTTP server will be made of; then 24 MiB in bounded memory.
#[test]
fn the_library_works_on_files_and_streams_in_bounded_memory() {
    let Some(home) = Home::with_kvm() else { return };
    let made = home.create(&["-m", SMALL, "--name", "lib"]);
    let library = Library::of(&home, 128);
    library.block_on(async {
        let sandbox = library.manager.find("lib").unwrap();
        let files = sandbox.files();
        let mut watch = files.watch(path("/srv"), true).await.unwrap();
        let mut sink = files.write(path("/srv/a/b"), Some(0o600), true).await.unwrap();
        sink.write(b"one ").await.unwrap();
        sink.write(b"two").await.unwrap();
        let FileDone::Entry(entry) = sink.finish().await.unwrap() else { panic!("no entry") };
        assert_eq!((entry.size, entry.mode, entry.owner.as_str(), entry.kind), (7, 0o600, "root", FileKind::File));
        assert_eq!(content(&files, "/srv/a/b").await.unwrap(), b"one two");
        loop {
            let change = watch.next().await.unwrap().expect("the directory is there");
            if change.kind == ChangeKind::Created && change.path == Some(path("a/b")) {
                break;
            }
        }
        drop(watch);

        // Dropped before its end, nothing came of it.
        let mut sink = files.write(path("/srv/a/b"), None, false).await.unwrap();
        sink.write(&vec![b'x'; 200_000]).await.unwrap();
        drop(sink);
        let alone = async || files.list(path("/srv/a"), 1).await.unwrap().len() == 1;
        while !alone().await {}
        assert_eq!(content(&files, "/srv/a/b").await.unwrap(), b"one two");

        let nobody = files.as_user(CText::try_from("nobody").unwrap());
        let refused = content(&nobody, "/srv/a/b").await.unwrap_err();
        assert_eq!(refused.kind(), Some(FileErrorKind::PermissionDenied), "{refused}");
        assert_eq!(files.rename(path("/srv/a/b"), path("/srv/c")).await.unwrap().path, path("/srv/c"));
        assert_eq!(files.set_mode(path("/srv/c"), 0o644, false).await.unwrap().mode, 0o644);
        let owned = files.set_owner(path("/srv/c"), CText::try_from("nobody").unwrap(), false).await.unwrap();
        assert_eq!((owned.owner.as_str(), owned.group.as_str()), ("nobody", "root"));
        assert_eq!(content(&nobody, "/srv/c").await.unwrap(), b"one two");
        files.make_directory(path("/srv/x/y"), None, true).await.unwrap();
        assert_eq!(files.remove(path("/srv/x"), true).await.unwrap().entries, 2);
        let missing = files.stat(path("/srv/x"), false).await.unwrap_err();
        assert_eq!(missing.kind(), Some(FileErrorKind::NotFound), "{missing}");
        run(&sandbox, &["truncate", "-s", "24M", "/dev/shm/zeros"]).await;
    });
    streams(&home, &made, 24 << 20);
    made.remove();
    home.assert_nothing_left();
}

/// Passes a file of zeros to a reader that is slow at first.
fn streams(home: &Home, sandbox: &Sandbox<'_>, size: u64) {
    let vmm_memory = Sampler::of_vmm_overhead(sandbox.vmm_pid(), 128);
    // Not by way of the harness, which keeps all that is written.
    let mut copy = Command::new(&home.artefacts().program)
        .args(["cp", "lib:/dev/shm/zeros", "-"])
        .env("SANDBOXVM_HOME", home.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let cli_memory = Sampler::of_process(copy.id());
    let worker = "for p in $(pgrep sandboxvm-files); do grep VmHWM /proc/$p/status; done";
    let measured = eventually(SOON, || {
        let out = sandbox.sh(worker).out();
        out.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok())
    });
    let worker_kib = measured.expect("a process serves the request while nobody reads");
    let (mut passed, mut buffer) = (0, vec![0; 64 * 1024]);
    let mut stdout = copy.stdout.take().unwrap();
    loop {
        let count = stdout.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        assert!(buffer[..count].iter().all(|byte| *byte == 0));
        passed += count as u64;
    }
    let status = copy.wait().unwrap();
    let (cli_kib, vmm_kib) = (cli_memory.peak_kib(), vmm_memory.peak_kib());
    eprintln!("{passed} bytes: CLI {cli_kib} KiB, VMM {vmm_kib} KiB, in the guest {worker_kib} KiB");
    assert!(status.success() && passed == size, "{status} after {passed} bytes");
    assert!(cli_kib <= CLI_LIMIT_KIB && vmm_kib <= VMM_LIMIT_KIB, "CLI {cli_kib} KiB, VMM {vmm_kib} KiB");
    assert!(worker_kib <= WORKER_LIMIT_KIB, "{worker_kib} KiB in the guest");
}

#[test]
#[ignore = "an hour long where the guest's kernel is interpreted: scripts/soak runs it"]
fn four_gib_stream_in_bounded_memory() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "lib"]);
    let _ = sandbox.sh("truncate -s 4G /dev/shm/zeros").succeeds();
    streams(&home, &sandbox, 4 << 30);
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn a_file_that_is_cut_short_while_it_is_copied_out_is_refused_and_leaves_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    // So slow that the file can be cut in the middle of it.
    let sandbox = home.create(&["-m", SMALL, "--name", "demo", "--output-rate", "512K"]);
    let out = home.scratch("out");
    fs::create_dir(&out).unwrap();
    let begun = |act: &str| {
        let is_it =
            || home.cli(["events", "--json", "demo"]).run().out().contains(&format!("\"act\":\"{act}\"")).then_some(());
        assert!(eventually(SOON, is_it).is_some(), "{act} never began");
    };
    for (to, act) in [(out.join("log").to_str().unwrap(), "archive"), ("-", "read")] {
        let _ = sandbox.sh("head -c 6M /dev/zero >/srv/log").succeeds();
        let copying = cp(&home, &["demo:/srv/log", to]).spawn();
        begun(act);
        let _ = sandbox.sh("truncate -s 1000 /srv/log").succeeds();
        let run = copying.finish().exits(125);
        assert!(run.err().contains("became shorter while it was read"), "{}", run.transcript());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{}", run.transcript());
    }
    sandbox.remove();
    home.assert_nothing_left();
}
