//! Files between host and sandbox: copies by the CLI, and file operations of the library.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

#[path = "../../../archive/tests/tree/mod.rs"]
mod tree;

use rustix::{
    fs::{XattrFlags, setxattr},
    process::Signal,
};
use sandboxvm_manager::{FileDone, FileError, Files};
use sandboxvm_protocol::agent::{
    CText,
    files::{ChangeKind, FileErrorKind, FileKind, FilePath},
};
use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    host::{memory::Sampler, processes},
    library::{Library, run},
};
use std::{
    fs::{self, File, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tree::{description, set_time};

/// Maximum resident memory of the CLI, however much it copies.
const CLI_LIMIT_KIB: u64 = 16 * 1024;
/// Maximum resident memory of the VMM, without its guest's memory.
const VMM_LIMIT_KIB: u64 = 6 * 1024;
/// Maximum resident memory, at any time, of the guest's process that serves a request.
const WORKER_LIMIT_KIB: u64 = 4 * 1024;
const SOON: Duration = Duration::from_secs(60);

/// Creates a directory tree with everything that a copy must preserve.
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

fn temporaries(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".sandboxvm-")).count()
}

fn cp(home: &Home, arguments: &[&str]) -> sandboxvm_tests::cli::Invocation {
    home.cli(["cp"]).args(arguments)
}

/// One sandbox for everything that the CLI copies, because each boot costs time.
#[test]
fn trees_are_copied_both_ways_and_streamed() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let work = home.scratch("work");
    fs::create_dir(&work).unwrap();
    let at = |name: &str| work.join(name).to_str().unwrap().to_owned();
    plant(&work.join("tree"));

    // Into a directory that exists, and out to a name that does not.
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

    // stdout receives the content of a file, or a directory as an archive. stdin is an archive.
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

    // A user without permission, a missing directory, a missing source, and an unknown sandbox.
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

/// An interrupted copy leaves the old file.
fn interrupted(home: &Home, sandbox: &Sandbox<'_>, work: &Path) {
    // A copy into the sandbox is killed when half of the file has arrived.
    let _ = sandbox.sh("mkdir /home/old && echo old > /home/old/file").succeeds();
    fs::create_dir(work.join("new")).unwrap();
    fs::write(work.join("new/file"), vec![b'n'; 300_000]).unwrap();
    let archive = Command::new("tar").args(["-cf", "-", "file"]).current_dir(work.join("new")).output().unwrap().stdout;
    let mut killed = cp(home, &["-", "demo:/home/old"]).open_stdin().spawn();
    killed.write(&archive[..200_000]);
    let half = || (sandbox.sh("ls -A /home/old").out().contains(".sandboxvm-")).then_some(());
    assert!(eventually(SOON, half).is_some(), "the copy does not write the file");
    killed.signal(Signal::KILL);
    assert_eq!(killed.finish().signal(), Some(9));
    let old = || (sandbox.sh("ls -A /home/old; cat /home/old/file").out() == "file\nold\n").then_some(());
    assert!(eventually(SOON, old).is_some(), "{}", sandbox.sh("ls -lA /home/old").transcript());

    // A copy out of the sandbox is interrupted as by Ctrl-C.
    let local = work.join("local");
    fs::create_dir(&local).unwrap();
    fs::write(local.join("file"), "old").unwrap();
    let target = local.join("file").to_str().unwrap().to_owned();
    let big = "demo:/usr/bin/python3.11";
    let running = cp(home, &["-L", big, &target]).spawn();
    assert!(
        eventually(SOON, || processes::writes_in(running.pid(), &local).then_some(())).is_some(),
        "the copy does not write the file"
    );
    running.signal(Signal::INT);
    let _ = running.finish().exits(130);
    assert_eq!((temporaries(&local), fs::read(local.join("file")).unwrap()), (0, b"old".to_vec()));
    let running = cp(home, &["-L", big, &target]).spawn();
    assert!(
        eventually(SOON, || processes::writes_in(running.pid(), &local).then_some(())).is_some(),
        "the copy does not write the file"
    );
    running.signal(Signal::KILL);
    assert_eq!(running.finish().signal(), Some(9));
    assert_eq!((temporaries(&local), fs::read(local.join("file")).unwrap()), (0, b"old".to_vec()));
}

/// A hostile guest tries to write outside of the destination, and to send too much.
fn hostile(home: &Home, sandbox: &Sandbox<'_>, work: &Path) {
    let out = work.join("out");
    fs::create_dir(&out).unwrap();
    let outside = work.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    // One copy brings a symbolic link, and the next one tries to write through it.
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
    assert_eq!(fs::read_to_string(out.join("evil/f")).unwrap(), "mine\n", "the copy replaces the link itself");
    let _ = cp(home, &["demo:/evil/d", &format!("{evil}/evil")]).run().fails_with(&["symbolic link"]);
    let names: Vec<_> = fs::read_dir(&outside).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["victim"]);
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");

    // Copies beyond the maximum size and the maximum number of files.
    let huge = out.join("huge").to_str().unwrap().to_owned();
    let _ = cp(home, &["demo:/huge", &huge]).run().fails_with(&["17179869184 bytes", "--max-size"]);
    let many = ["--max-files", "3", "demo:/etc", &huge];
    let _ = cp(home, &many).run().fails_with(&["more than 3", "--max-files"]);
    assert_eq!(temporaries(&out), 0);

    // The copy of a directory that changes all the time ends too.
    let busy = "mkdir /busy && cd /busy && echo up && while :; do for n in 1 2 3 4 5 6; do echo $n > a$n; mkdir -p d$n; \
                done; rm -rf a* d*; done";
    let mut busy = sandbox.spawn_sh(busy);
    busy.wait_for_stdout("up\n");
    let _ = cp(home, &["demo:/busy", out.join("busy").to_str().unwrap()]).run().succeeds();
    busy.signal(Signal::TERM);
    let _ = busy.finish();
    // A name that would control a terminal is shown escaped.
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

/// The operations on which the server is built. Then a stream of 12 MiB in bounded memory.
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

        // A writer that is dropped before its end has no effect.
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
        run(&sandbox, &["truncate", "-s", "12M", "/dev/shm/zeros"]).await;
    });
    streams(&home, &made, 12 << 20);
    made.remove();
    home.assert_nothing_left();
}

/// Copies a file of zeros to a reader that is slow at first.
fn streams(home: &Home, sandbox: &Sandbox<'_>, size: u64) {
    let vmm_memory = Sampler::of_vmm_overhead(sandbox.vmm_pid(), 128);
    // Not through the harness, which stores all output.
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
    let worker_kib = measured.expect("no process serves the request while the reader waits");
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
fn a_file_that_becomes_shorter_during_its_copy_is_rejected_and_leaves_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    // The rate is so low that the file can be truncated during the copy.
    let sandbox = home.create(&["-m", SMALL, "--name", "demo", "--output-rate", "256K"]);
    let out = home.scratch("out");
    fs::create_dir(&out).unwrap();
    let begun = |act: &str| {
        let is_it =
            || home.cli(["events", "--json", "demo"]).run().out().contains(&format!("\"act\":\"{act}\"")).then_some(());
        assert!(eventually(SOON, is_it).is_some(), "{act} never began");
    };
    for (to, act) in [(out.join("log").to_str().unwrap(), "archive"), ("-", "read")] {
        let _ = sandbox.sh("head -c 4M /dev/zero >/srv/log").succeeds();
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
