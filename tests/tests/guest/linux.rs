//! What a command finds in the guest: Linux as the documentation promises it, and nothing of the
//! host.

use sandboxvm_tests::home::{Home, SMALL, Sandbox};
use std::time::{SystemTime, UNIX_EPOCH};

/// Checks that are done by a shell, most of them by the shell itself: to start a program costs a guest
/// far more. Each prints its line if it is not true.
const CHECKS: &str = r#"
check() { eval "$1" >/dev/null 2>&1 || echo "$1"; }
mounted() { grep -q "^[^ ]* $1 $2 " /proc/mounts; }
programs() { for p in bash bzip2 curl file git jq less patch pip ps python python3 sha256sum sudo tar unzip wget xz zip
  do command -v $p || return 1; done; }
check 'mounted / overlay && mounted /proc proc && mounted /sys sysfs'
check 'mounted /dev devtmpfs || mounted /dev tmpfs'
check 'mounted /dev/pts devpts && mounted /dev/shm tmpfs && mounted /sys/fs/cgroup cgroup2'
check '[ "$(stat -c %a /dev/shm /tmp)" = "1777
1777" ]'
check 'n=0; for c in $(cat /sys/fs/cgroup/cgroup.controllers); do case $c in cpu|memory|pids) n=$((n + 1));; esac; done; [ $n = 3 ]'
check '[ "$(nproc)" = 1 ]'
check 'case "$(readlink /proc/1/exe)" in *init);; *) false; esac'
check '[ ! -e /proc/modules ] && [ ! -e /sys/bus/pci ]'
check 'read a < /proc/sys/kernel/random/uuid; read b < /proc/sys/kernel/random/uuid; [ -n "$a" ] && [ "$a" != "$b" ]'
check 'grep -q ^Seccomp: /proc/self/status'
check '[ "$(unshare -Ur id -u)" = 0 ]'
check 'unshare -mpf true'
check programs
check 'v=$(python --version) && [ -n "$v" ] && [ "$v" = "$(python3 --version)" ]'
check 'git init -q /tmp/repo && cd /tmp/repo && : > f && git add f'
check '[ -e /etc/ssl/certs/ca-certificates.crt ]'
check '[ "$(stat -c %u /home/user)" = 1000 ]'
check 'cd /sys/class/net && [ "$(echo *)" = lo ]'
# A write that would reach a shared image must fail for every user.
check '! dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync'
check '! dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync'
echo checked"#;

/// Checks that need the calls of a library. The program imports little, which costs a guest least.
const CALLS: &str = "
import _socket as s, _thread, os, select, time
def is_true(what, ok):
    if not ok: print(what)
a, b = s.socket(s.AF_INET, s.SOCK_STREAM), s.socket(s.AF_INET, s.SOCK_STREAM)
a.bind(('127.0.0.1', 0)); a.listen(); b.connect(a.getsockname())
c = s.socket(fileno=a._accept()[0])
is_true('loopback', c.send(b'x') == 1 and b.recv(1) == b'x')
c, d = s.socketpair()
is_true('unix socket', c.send(b'x') == 1 and d.recv(1) == b'x')
leader, follower = os.openpty()
is_true('terminal', os.isatty(follower) and os.ttyname(follower).startswith('/dev/pts/'))
is_true('epoll', select.epoll().poll(0) == [])
ran = []
_thread.start_new_thread(ran.append, (1,))
while not ran: time.sleep(0.01)
is_true('random', os.getrandom(16) != os.getrandom(16))
is_true('temporary file', os.write(os.open('/tmp/t', os.O_CREAT | os.O_EXCL | os.O_RDWR), b'x') == 1)
print('called')";

/// inotify_init1(2) and inotify_add_watch(2), without a library.
const INOTIFY: &str = "$i = syscall(294, 0); $at = '/tmp'; exit !($i >= 0 && syscall(254, $i, $at, 0x100) >= 0)";

#[test]
fn the_guest_is_the_linux_that_is_documented() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "linux"]);
    assert_eq!(sandbox.sh(CHECKS).succeeds().out(), "checked\n", "these checks failed in the guest");
    let called = sandbox.exec(["--", "python3", "-S", "-I", "-c", CALLS]).run().succeeds();
    assert_eq!(called.out(), "called\n", "these checks failed in the guest");
    let _ = sandbox.exec(["--", "perl", "-e", INOTIFY]).run().succeeds();
    let as_user = sandbox.exec(["-u", "user", "--", "sh", "-c", "id -u; sudo -n id -u"]).run().succeeds();
    assert_eq!((as_user.out().as_str(), as_user.err().as_str()), ("1000\n0\n", ""));

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
