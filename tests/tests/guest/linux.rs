//! What a command finds in the guest: Linux as the documentation promises it, and nothing of the
//! host.

use sandboxvm_tests::home::{Home, SMALL, Sandbox};
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs `checks` in one Python program. Each is an expression that must be true.
fn all_true(sandbox: &Sandbox<'_>, preamble: &str, checks: &[&str]) {
    let list: String = checks.iter().map(|check| format!("    {check:?},\n")).collect();
    let script = format!(
        "{preamble}\nfailed = 0\nfor check in [\n{list}]:\n    try:\n        ok, seen = eval(check), ''\n    except \
         Exception as e:\n        ok, seen = False, repr(e)\n    if not ok:\n        failed = 1\n        print(check, \
         seen)\nraise SystemExit(failed)\n"
    );
    let run = sandbox.exec(["-i", "--", "python3", "-"]).input(script).run();
    assert!(run.code() == Some(0), "these checks failed in the guest: {}", run.transcript());
}

#[test]
fn the_guest_is_the_linux_that_is_documented() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "linux"]);
    let preamble = r#"
import ctypes, os, pty, select, shutil, socket, stat, subprocess, tempfile, threading
PROGRAMS = 'bash bzip2 curl file git jq less patch pip ps python python3 sha256sum sudo tar unzip wget xz zip'
def read(path):
    with open(path) as f: return f.read()
def sh(script):
    return subprocess.run(['sh', '-c', script], capture_output=True, text=True)
def as_user(script):
    ran = subprocess.run(['sh', '-c', script], user=1000, group=1000, extra_groups=[], capture_output=True, text=True)
    return ran.stdout, ran.stderr
mounts = {line.split()[1]: line.split()[2] for line in read('/proc/mounts').splitlines()}
def loopback():
    with socket.create_server(('127.0.0.1', 0)) as s, socket.create_connection(s.getsockname()) as c:
        return s.accept()[0].send(b'x') == 1 and c.recv(1) == b'x'
def unix_socket():
    a, b = socket.socketpair()
    return a.send(b'x') == 1 and b.recv(1) == b'x'
def terminal():
    leader, follower = pty.openpty()
    return os.isatty(follower) and os.ttyname(follower).startswith('/dev/pts/')
def inotify():
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(0)
    return fd >= 0 and libc.inotify_add_watch(fd, b'/tmp', 0x100) >= 0
def epoll():
    with select.epoll() as e: return e.poll(0) == []
def threads():
    t = threading.Thread(target=lambda: None); t.start(); t.join(); return True
"#;
    let checks = [
        "mounts['/'] == 'overlay'",
        "mounts['/proc'] == 'proc' and mounts['/sys'] == 'sysfs'",
        "mounts['/dev'] in ('devtmpfs', 'tmpfs') and mounts['/dev/pts'] == 'devpts'",
        "mounts['/dev/shm'] == 'tmpfs' and stat.S_IMODE(os.stat('/dev/shm').st_mode) == 0o1777",
        "stat.S_IMODE(os.stat('/tmp').st_mode) == 0o1777",
        "mounts['/sys/fs/cgroup'] == 'cgroup2'",
        "{'cpu', 'memory', 'pids'} <= set(read('/sys/fs/cgroup/cgroup.controllers').split())",
        "os.cpu_count() == 1",
        "os.readlink('/proc/1/exe').endswith('init')",
        "not os.path.exists('/proc/modules') and not os.path.exists('/sys/bus/pci')",
        "os.getrandom(16) != os.getrandom(16)",
        "loopback()",
        "unix_socket()",
        "terminal()",
        "inotify()",
        "epoll()",
        "threads()",
        "tempfile.NamedTemporaryFile().write(b'x') == 1",
        "'Seccomp:' in read('/proc/self/status')",
        "sh('unshare -Ur id -u').stdout == '0\\n'",
        "sh('unshare -mpf true').returncode == 0",
        "[p for p in PROGRAMS.split() if not shutil.which(p)] == []",
        "sh('python --version').stdout == sh('python3 --version').stdout != ''",
        "as_user('sudo -n id -u') == ('0\\n', '')",
        "as_user('id -u') == ('1000\\n', '')",
        "sh('git init -q /tmp/repo && cd /tmp/repo && touch f && git add f').returncode == 0",
        "os.path.exists('/etc/ssl/certs/ca-certificates.crt')",
        "os.stat('/home/user').st_uid == 1000",
        "[i for i in os.listdir('/sys/class/net') if i not in ('lo',)] == []",
        // A write that would reach a shared image must fail for every user.
        "sh('dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync').returncode != 0",
        "sh('dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync').returncode != 0",
    ];
    all_true(&sandbox, preamble, &checks);

    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let before = now();
    let run = sandbox.sh("date +%s; hostname").succeeds();
    let out = run.out();
    let mut lines = out.lines();
    let guest: u64 = lines.next().and_then(|seconds| seconds.parse().ok()).expect("seconds");
    // The guest's time lies in the time that the command took.
    let host = before - 1..=now() + 1;
    assert!(host.contains(&guest), "the guest's clock says {guest}, the host's {host:?}");
    assert!(["linux", sandbox.id.as_str()].contains(&lines.next().expect("a hostname")), "{out}");
}

/// All sandboxes share the images. What the root user of one guest changes in its root directory
/// stays in that sandbox.
#[test]
fn the_shared_image_is_never_written() {
    let Some(home) = Home::with_kvm() else { return };
    let modified =
        |name: &str| std::fs::metadata(home.artefacts().part(name)).and_then(|m| m.modified()).expect("a file");
    let before = [modified("base.erofs"), modified("agent.erofs"), modified("vmlinux")];
    let sandbox = home.create(&["-m", SMALL]);
    let _ = sandbox.sh("rm -rf /usr/share/base-files /opt; echo x >> /usr/bin/env; sync").succeeds();
    sandbox.remove();
    assert_eq!([modified("base.erofs"), modified("agent.erofs"), modified("vmlinux")], before);
    let run = home.cli(["run", "-m", SMALL, "--", "env", "echo", "whole"]).run().succeeds();
    assert_eq!(run.out(), "whole\n");
}

#[test]
fn the_guest_sees_nothing_of_the_host() {
    let Some(home) = Home::with_kvm() else { return };
    let created = home.cli(["create", "-m", SMALL]).env("HOST_SECRET", "hunter2").run().succeeds();
    let sandbox = Sandbox::printed(&home, &created);
    let script = "cat /proc/cmdline; cat /proc/1/environ /proc/1/cmdline | tr '\\0' '\\n'; env; cat /proc/mounts; \
                  cat /proc/partitions; ls /sys/class/*; hostname; cat /etc/hostname /etc/hosts /etc/machine-id /etc/passwd \
                  /etc/timezone /etc/resolv.conf /proc/version /proc/sys/kernel/random/boot_id; date +zone=%Z; \
                  grep -owE 'vmx|svm|monitor|rtm|hle|pdcm|dts|arch_lbr' /proc/cpuinfo | sed s/^/processor:/";
    let run =
        sandbox.exec(["--", "sh", "-c", script]).env("HOST_SECRET", "hunter2").env("TZ", "Antarctica/Troll").run();
    let seen = format!("{}{}", run.out(), run.err());
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("/proc is mounted");
    let machine_id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let host_kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("/proc is mounted");
    let home_path = home.path().display().to_string();
    let bundle = home.artefacts().bundle.display().to_string();
    for secret in [
        "hunter2",
        "HOST_SECRET",
        "Antarctica",
        host_name.trim(),
        machine_id.trim(),
        host_kernel.trim(),
        boot_id.trim(),
        &home_path,
        &bundle,
    ] {
        assert!(secret.len() < 4 || !seen.contains(secret), "the guest sees {secret:?}: {seen}");
    }
    assert!(seen.contains("zone=UTC"), "{seen}");
    // If the guest's user mode runs on the processor without hardware virtualisation, CPUID is the
    // processor's.
    let is_pvm = std::path::Path::new("/sys/module/kvm_pvm").exists();
    let own = std::fs::read_to_string("/proc/cpuinfo").expect("/proc is mounted");
    let own: Vec<_> =
        own.lines().find(|line| line.starts_with("flags")).into_iter().flat_map(str::split_whitespace).collect();
    for flag in seen.lines().filter_map(|line| line.strip_prefix("processor:")) {
        assert!(is_pvm && own.contains(&flag), "the guest sees {flag}: {seen}");
    }
    // Only the owner can read the logs and files of a home.
    use std::os::unix::fs::PermissionsExt;
    for path in [home.path(), sandbox.directory()] {
        let mode = std::fs::metadata(&path).expect("the file exists").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is open to others: {mode:o}", path.display());
    }
}
