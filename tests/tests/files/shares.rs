//! Live shares, in a real guest: what programs do with them, what the host sees, and what happens when the
//! process that serves one dies.

use rustix::process::{Pid, Signal, kill_process};
use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox},
    waiting::eventually,
};
use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::Command,
    time::Duration,
};

/// Ends a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What sqlite, mmap(2), flock(2), rename(2) over a file and long names need.
const PROGRAMS: &str = r#"
import fcntl, mmap, os, sqlite3
database = sqlite3.connect("data.db")
database.execute("create table t(n)")
database.executemany("insert into t values(?)", ((n,) for n in range(500)))
database.commit()
assert database.execute("select sum(n) from t").fetchone()[0] == 124750
database.close()
with open("mapped", "w+b") as file:
    file.truncate(3 * 4096)
    with mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5000:5005] = b"hello"
        mapped.flush()
        assert os.pread(file.fileno(), 5, 5000) == b"hello"
one, other = open("locked", "w"), open("locked", "w")
fcntl.flock(one, fcntl.LOCK_EX)
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    raise SystemExit("two locks")
except BlockingIOError:
    pass
open("new", "w").write("new")
os.rename("new", "over")
open("n" * 255, "w").close()
os.setxattr("over", "user.a", b"b")
assert os.listxattr("over") == ["user.a"]
for forbidden in (lambda: os.mkfifo("p"), lambda: os.chmod("over", 0o4755), lambda: os.chown("over", 7, 7)):
    try:
        forbidden()
        raise SystemExit("allowed")
    except PermissionError:
        pass
"#;

/// Returns the processes that serve a directory.
fn servers(home: &Home) -> Vec<Pid> {
    let read = |pid: i32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let of_home = home.path().display().to_string();
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |pid: &i32| {
        // Field 4 is the parent, which is the supervisor.
        let parent = read(*pid, "stat").split(' ').nth(3).and_then(|parent| parent.parse().ok());
        read(*pid, "comm") == "sandboxvm-share\n" && parent.is_some_and(|it| read(it, "cmdline").contains(&of_home))
    };
    processes.filter(is_one).filter_map(Pid::from_raw).collect()
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(["-c", "safe.directory=*"]).args(arguments);
    let output = command.output().expect("git is installed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Holds files open until a file of its machine appears.
const HOLDER: &str = "cd /data/p; exec 3<>/data/open 4</data/gone; touch /root/ready; \
    while [ ! -e /root/go ]; do sleep 0.2; done; \
    { cat <&3; echo \"from $(cat /root/go)\" >&3; cat <&4 || echo stale; ls over; } >/root/said 2>&1; touch /root/done";
/// Writes until a file appears, and notes each failure.
const WRITER: &str = "until [ -e /root/end ]; do echo x >>/data/log || echo failed >>/root/failed; sleep 0.02; done";

/// Snapshots and forks of a sandbox with live shares, while programs use them.
fn copies_have_their_files_or_none(home: &Home, sandbox: &Sandbox<'_>, data: &Path, mounts: &[String]) {
    let refused = |arguments: &[&str], reasons: &[&str]| {
        let _ = home.cli(arguments).run().fails_with(reasons);
    };
    let in_machine = |name: &str, script: &str| home.cli(["exec", name, "--", "sh", "-c", script]).run();
    fs::write(data.join("open"), "first\n").expect("root may do that");
    chown(data.join("open"), Some(4242), Some(4343)).expect("root may do that");
    fs::write(data.join("gone"), "old\n").expect("root may do that");
    let begin = "for program; do setsid sh -c \"$program\" >/dev/null 2>&1 </dev/null & done; \
                 while [ ! -e /root/ready ]; do sleep 0.1; done";
    let _ = sandbox.exec(["sh", "-c", begin, "sh", HOLDER, WRITER]).run().succeeds();
    let _ = home.cli(["snapshot", "create", "sharer", "kept"]).run().succeeds();
    fs::write(data.join("new"), "new\n").expect("root may do that");
    fs::rename(data.join("new"), data.join("gone")).expect("root may do that");
    fs::write(data.join("a"), "changed\n").expect("root may do that");

    // A snapshot does not choose what of the host is shared, and a share that was read-only stays so.
    let create = |which: &[&str]| {
        let flags: Vec<&str> = which.iter().flat_map(|mount| ["-v", mount]).collect();
        home.cli([&["create", "--from", "kept", "--name", "restored"][..], &flags].concat()).run()
    };
    let all: Vec<&str> = mounts.iter().map(String::as_str).collect();
    let _ = create(&[]).fails_with(&["live share at", "no directory of the host was given", "hint", "-v"]);
    let writable = all[1].trim_end_matches(":ro");
    let _ = create(&[all[0], writable, all[2]]).fails_with(&["cannot make the share at /read only writable"]);
    let _ = create(&["/missing:/data", all[1], all[2]]).fails_with(&["cannot share /missing"]);
    let _ = create(&all).succeeds();

    // What was open is the same file, or stale; no request failed for the copy.
    let finish = |name: &str| {
        let go = format!(
            "echo {name} >/root/g; mv /root/g /root/go; touch /root/end; while [ ! -e /root/done ]; do sleep 0.1; done"
        );
        let _ = in_machine(name, &go).succeeds();
        in_machine(name, "cat /root/said").succeeds().out()
    };
    let failed = |name: &str| in_machine(name, "cat /root/failed").out();
    assert_eq!(in_machine("restored", "sleep 1; cat /data/a '/read only/f'").succeeds().out(), "changed\nfixed\n");
    let said = finish("restored");
    assert!(
        said.starts_with("first\n") && said.contains("Stale file handle") && said.ends_with("stale\nover\n"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(data.join("open")).expect("it is there"), "first\nfrom restored\n");
    assert_eq!(failed("restored"), "");
    let _ = home.cli(["reset", "restored"]).run().succeeds();
    assert_eq!(in_machine("restored", "ls /root; cat /data/a").succeeds().out(), "ready\nchanged\n");
    let _ = home.cli(["rm", "-f", "restored"]).run().succeeds();

    // A fork of a writer needs consent. Its copies read what all write, and write only if they may.
    refused(&["fork", "sharer"], &["can write", "hint", "--share-on-fork"]);
    let fork =
        |how: &str| home.cli(["fork", "--share-on-fork", how, "sharer"]).run().succeeds().out().trim().to_owned();
    // Copies of the files are of that moment, and a fork of the fork has others.
    let copier = fork("copy");
    let said = finish(&copier);
    assert!(said.starts_with("first\nfrom restored\n") && said.ends_with("stale\nover\n"), "{said}");
    assert_eq!(failed(&copier), "");
    let script = "echo own >/data/a; echo own >/etc/file; cat /data/open /data/a '/read only/f'; stat -c %u:%a /data/a";
    let expected = format!("first\nfrom restored\nfrom {copier}\nown\nfixed\n0:644\n");
    assert_eq!(in_machine(&copier, script).succeeds().out(), expected);
    let of_host = ["open", "a"].map(|name| fs::read_to_string(data.join(name)).expect("it is there"));
    assert_eq!(of_host, ["first\nfrom restored\n", "changed\n"]);
    let own = home.path().join("sandboxes").join(&copier).join("share-0/files/a");
    assert_eq!(fs::metadata(&own).expect("it is there").uid(), 4242);
    refused(&["fork", "--share-on-fork", "ro", &copier], &["a private copy", "hint", "--share-on-fork copy"]);
    let second = home.cli(["fork", "--share-on-fork", "copy", &copier]).run().succeeds().out().trim().to_owned();
    assert_eq!(
        in_machine(&second, "echo second >>/data/a; cat /data/a /etc/file").succeeds().out(),
        "own\nsecond\nown\n"
    );
    assert_eq!(in_machine(&copier, "cat /data/a").succeeds().out(), "own\n");
    let _ = home.cli(["rm", "-f", &copier, &second]).run().succeeds();
    assert!(!own.exists());
    let (reader, writer) = (fork("ro"), fork("share"));
    assert!(in_machine(&reader, "echo >/data/x").err().contains("Read-only file system"));
    let said = finish(&reader);
    assert!(said.starts_with("cat: ") && said.ends_with("stale\nover\n") && !said.contains("first"), "{said}");
    let said = finish(&writer);
    assert!(said.starts_with("first\nfrom restored\n") && said.ends_with("stale\nover\n"), "{said}");
    assert_eq!(failed(&writer), "");
    for copy in [&reader, &writer] {
        let _ = home.cli(["rm", "-f", copy]).run().succeeds();
    }
    let said = finish("sharer");
    assert_eq!(said, format!("first\nfrom restored\nfrom {writer}\nold\nover\n"));
    assert_eq!(failed("sharer"), "");
    let _ = home.cli(["pause", "sharer"]).run().succeeds();
    refused(&["snapshot", "create", "sharer", "paused"], &["is paused", "hint", "resume"]);
    let _ = home.cli(["resume", "sharer"]).run().succeeds();
    let _ = home.cli(["snapshot", "rm", "kept"]).run().succeeds();
    fs::write(data.join("a"), "host\n").expect("root may do that");
}

#[test]
fn shares_are_live_confined_to_their_root_and_served_again() {
    let Some(home) = Home::with_kvm() else { return };
    let (data, fixed) = (home.scratch("data"), home.scratch("read only"));
    for directory in [&data, &fixed] {
        fs::create_dir(directory).expect("a new directory");
    }
    // A directory of an ordinary user.
    chown(&data, Some(4242), Some(4343)).expect("root may do that");
    fs::write(fixed.join("f"), "fixed\n").expect("a new file");
    let file = home.scratch("file");
    fs::write(&file, "file\n").expect("a new file");
    let at = |path: &Path, rest: &str| format!("{}:{rest}", path.display());
    let mounts = [at(&data, "/data"), at(&fixed, "/read only:ro"), at(&file, "/etc/file")];
    let flags: Vec<&str> = ["-m", SMALL].into_iter().chain(mounts.iter().flat_map(|mount| ["-v", mount])).collect();
    let nested = ["--tmpfs", "/data/cache", "--name", "sharer"];
    let sandbox = home.create(&[&flags[..], &nested].concat());
    let said = |script: &str| sandbox.sh(script).succeeds().out();

    // Both sides see what the other does, and owners are right on both.
    assert_eq!(
        said("cat '/read only/f' /etc/file; echo guest >/data/a; stat -c %u:%g /data /data/a"),
        "fixed\nfile\n0:0\n0:0\n"
    );
    let made = fs::metadata(data.join("a")).expect("the guest made it");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (4242, 4343, 0o644));
    fs::write(data.join("a"), "host\n").expect("root may do that");
    assert_eq!(said("sleep 1; cat /data/a"), "host\n");
    assert!(sandbox.sh("touch '/read only/x'").err().contains("Read-only file system"));
    assert_eq!(said("echo new >/etc/file; echo >/data/cache/x; ls /data/cache"), "x\n");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "new\n");
    assert_eq!(fs::read_dir(data.join("cache")).expect("the mount point is there").count(), 0);
    let process = servers(&home)[0];
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_pid())).expect("it runs");
    let has = |line: &str| assert!(status.contains(line), "{line}: {status}");
    ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"].into_iter().for_each(has);

    // git on both sides, and what programs need.
    let commit = "cd /data; git init -q repo; cd repo; echo a >a; git add .; \
                  git -c user.name=a -c user.email=a@example commit -qm first; git status --short";
    assert_eq!(said(commit), "");
    let _ = git(&data.join("repo"), &["fsck", "--strict"]);
    assert_eq!(git(&data.join("repo"), &["status", "--short"]), "");
    let _ = sandbox.exec(["sh", "-c", "mkdir /data/p; cd /data/p; exec python3 -c \"$0\"", PROGRAMS]).run().succeeds();
    assert_eq!(&fs::read(data.join("p/mapped")).expect("the guest made it")[5000..5005], b"hello");

    copies_have_their_files_or_none(&home, &sandbox, &data, &mounts);

    // A process that dies fails what it has open, and another one serves the mount.
    let held = "exec 3>/data/held; echo 1 >&3; touch /data/ready; while [ -e /data/ready ]; do sleep 0.2; done; \
                echo 2 >&3 || echo failed; cat /data/a; cat /etc/file";
    let holding = sandbox.spawn_sh(held);
    eventually(PATIENCE, || data.join("ready").exists().then_some(())).expect("the guest holds a file");
    for process in servers(&home) {
        let _ = kill_process(process, Signal::KILL);
    }
    eventually(PATIENCE, || (servers(&home).len() == 3).then_some(())).expect("others serve the shares");
    let _ = fs::remove_file(data.join("ready"));
    assert_eq!(holding.finish().out(), "failed\nhost\nnew\n");

    // A reset mounts the shares again. The end of the sandbox waits for no process of a share.
    let _ = home.cli(["reset", "sharer"]).run().succeeds();
    assert_eq!(said("cat /data/a"), "host\n");
    for process in servers(&home) {
        let _ = kill_process(process, Signal::STOP);
    }
    let _ = home.cli(["rm", "-f", "sharer"]).run().succeeds();
    home.assert_nothing_left();

    // What no sandbox may share.
    let path = home.path();
    for refused in ["/", path.to_str().expect("UTF-8"), path.parent().and_then(Path::to_str).expect("UTF-8")] {
        let mount = format!("{refused}:/x");
        let _ = home.cli(["create", "-m", SMALL, "-v", &mount]).run().fails_with(&["cannot share"]);
    }
}
