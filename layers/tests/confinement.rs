//! What a layer process that was taken over can still do, tried by a process that confines itself as it
//! does. Each attempt also succeeds in the same process before it is confined: otherwise it would show
//! nothing.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use sandboxvm_layers::{Limits, process::confinement::confine};
use std::{
    env, fs,
    io::{self, Read, Write},
    os::fd::AsRawFd,
    process::Command,
    sync::OnceLock,
};

/// Set for the process that tries: the user that it is.
const AS: &str = "LAYERS_DRILL_USER";
/// A user that is not root.
const ORDINARY: u32 = 65_533;

fn result(value: impl Into<i64>) -> io::Result<()> {
    if value.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> io::Result<i64> {
    // SAFETY: the calls below take numbers, or pointers that are null or to what lives until they return.
    let value = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], 0, 0) };
    result(value).map(|()| value)
}

fn int(value: libc::c_int) -> libc::c_long {
    value.into()
}

/// An error that shows that the call was made.
fn made(result: io::Result<()>, errors: &[libc::c_int]) -> io::Result<()> {
    result.or_else(
        |error| {
            if error.raw_os_error().is_some_and(|code| errors.contains(&code)) { Ok(()) } else { Err(error) }
        },
    )
}

fn new_socket(family: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    let socket = call(libc::SYS_socket, [int(family), int(kind), 0, 0])?;
    call(libc::SYS_close, [socket, 0, 0, 0]).map(drop)
}

/// What the process has: the image, and its caller's socket.
static HELD: OnceLock<(fs::File, std::os::unix::net::UnixDatagram)> = OnceLock::new();

fn held() -> &'static (fs::File, std::os::unix::net::UnixDatagram) {
    HELD.get_or_init(|| (tempfile::tempfile().unwrap(), std::os::unix::net::UnixDatagram::pair().unwrap().0))
}

fn image() -> libc::c_long {
    held().0.as_raw_fd().into()
}

fn parent() -> libc::c_long {
    env::var("LAYERS_DRILL_PARENT").unwrap().parse().unwrap()
}

/// An attack, by name. One that succeeds must leave the process able to try the others.
type Attempt = (&'static str, fn() -> io::Result<()>);

const ATTEMPTS: [Attempt; 23] = [
    ("read a file", || fs::read("/etc/passwd").map(drop)),
    ("list a directory", || fs::read_dir("/proc").map(drop)),
    ("open a file through /proc", || fs::read("/proc/self/environ").map(drop)),
    ("open a file at a descriptor", || {
        let how = [0_u64; 3];
        let path = c"/";
        call(libc::SYS_openat2, [int(libc::AT_FDCWD), path.as_ptr() as i64, how.as_ptr() as i64, 24])
            .and_then(|fd| call(libc::SYS_close, [fd, 0, 0, 0]))
            .map(drop)
    }),
    ("examine a file", || fs::metadata("/").map(drop)),
    ("remove a file", || made(fs::remove_file("/does/not/exist"), &[libc::ENOENT])),
    ("run a program", || Command::new("/bin/true").status().map(drop)),
    ("replace its program", || made(call(libc::SYS_execve, [0, 0, 0, 0]).map(drop), &[libc::EFAULT])),
    ("fork", || {
        let child = call(libc::SYS_clone, [int(libc::SIGCHLD), 0, 0, 0])?;
        if child == 0 {
            // SAFETY: ends the new process.
            unsafe { libc::_exit(0) };
        }
        Ok(())
    }),
    ("start a thread", || {
        std::thread::Builder::new().spawn(|| ())?.join().map_err(|_| io::Error::other("it panicked"))
    }),
    ("trace its parent", || {
        // PTRACE_SEIZE, and its opposite, which fails for a tracee that does not stop.
        call(libc::SYS_ptrace, [0x4206, parent(), 0, 0])?;
        let _ = call(libc::SYS_ptrace, [17, parent(), 0, 0]);
        Ok(())
    }),
    ("signal its parent", || call(libc::SYS_kill, [parent(), 0, 0, 0]).map(drop)),
    ("read another process", || made(call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0]).map(drop), &[libc::EINVAL])),
    ("open a descriptor of another process", || call(libc::SYS_pidfd_open, [1, 0, 0, 0]).map(drop)),
    ("make a Unix socket", || new_socket(libc::AF_UNIX, libc::SOCK_STREAM)),
    ("make a TCP socket", || new_socket(libc::AF_INET, libc::SOCK_STREAM)),
    ("receive descriptors", || {
        // SAFETY: all zeroes is an empty message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        let flags = libc::MSG_DONTWAIT;
        let socket = held().1.as_raw_fd();
        // SAFETY: the message lives until the call returns, and names no buffer.
        let received = unsafe { libc::recvmsg(socket, &raw mut message, flags) };
        made(result(i64::try_from(received).unwrap()), &[libc::EAGAIN, libc::ECONNREFUSED, libc::ECONNRESET])
    }),
    ("make a namespace", || call(libc::SYS_unshare, [int(libc::CLONE_NEWUTS), 0, 0, 0]).map(drop)),
    ("change its user", || {
        // SAFETY: asks for the current user.
        let user = unsafe { libc::getuid() }.into();
        call(libc::SYS_setresuid, [user, user, user, 0]).map(drop)
    }),
    ("map executable memory", || {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    ("use io_uring", || made(call(libc::SYS_io_uring_setup, [0, 0, 0, 0]).map(drop), &[libc::EFAULT, libc::EINVAL])),
    ("allocate blocks of the image", || call(libc::SYS_fallocate, [image(), 0, 0, 4096]).map(drop)),
    ("change the mode of the image", || call(libc::SYS_fchmod, [image(), 0o600, 0, 0]).map(drop)),
];

/// Attacks as a user, and returns what the attacker says.
fn drill(user: u32) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make all of these attempts before");
        return;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "attacker", "--nocapture", "--include-ignored"]);
    // The directory for temporary files of the caller may be private.
    command.env("TMPDIR", "/tmp");
    command.env(AS, user.to_string()).env("LAYERS_DRILL_PARENT", std::process::id().to_string());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    for (name, _) in ATTEMPTS {
        // An ordinary user cannot do these.
        let is_roots = ["make a namespace", "trace its parent", "signal its parent", "read another process"];
        if user == 0 || !(is_roots.contains(&name) || name.contains("of the image")) {
            assert!(said.contains(&format!("before: {name}: ok")), "{name}: {said}{errors}");
        }
        assert!(said.contains(&format!("confined: {name}: refused")), "{name}: {said}{errors}");
    }
    assert!(said.contains("confined: uses what it has: ok"), "{said}{errors}");
    assert!(said.contains("NoNewPrivs:\t1") && said.contains("Seccomp:\t2"), "{said}");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert!(said.contains(&format!("{set}:\t0000000000000000")), "{set}: {said}");
    }
    assert!(!said.contains("missing:"), "{said}");
    let found: u32 = said.split("Uid:\t").nth(1).unwrap().split('\t').next().unwrap().parse().unwrap();
    assert!(found == user || user == 0 && (0x6840_0000..0x6880_0000).contains(&found), "{found}");
}

#[test]
fn a_confined_layer_process_uses_only_what_it_has() {
    drill(0);
}

#[test]
fn a_confined_layer_process_of_an_ordinary_user_uses_only_what_it_has() {
    drill(ORDINARY);
}

/// The process that tries: a child with one thread, since a process with several enters no user namespace.
#[test]
#[ignore = "run by the tests above, in a separate process"]
fn attacker() {
    let Ok(user) = env::var(AS) else { return };
    // SAFETY: the child has this thread alone, and the harness's other thread waits for this one and holds no lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let tried = std::panic::catch_unwind(|| attack(user.parse().unwrap()));
        // SAFETY: ends the child without what the harness would do at its end.
        unsafe { libc::_exit(tried.is_err().into()) };
    }
    let mut status = 0;
    // SAFETY: waits for the child of above.
    result(unsafe { libc::waitpid(child, &raw mut status, 0) }).unwrap();
    assert_eq!(status, 0);
}

fn attack(user: u32) {
    // SAFETY: plain numbers.
    unsafe { libc::setresgid(user, user, user) };
    // SAFETY: plain numbers.
    unsafe { libc::setresuid(user, user, user) };
    // A change of the user makes a process not dumpable, and its files in /proc root's.
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    let mut status = fs::File::open("/proc/self/status").unwrap();
    held();
    let try_all = |when: &str| {
        for (name, attempt) in ATTEMPTS {
            match attempt() {
                Ok(()) => println!("{when}: {name}: ok"),
                Err(error) => println!("{when}: {name}: refused ({error})"),
            }
        }
    };
    try_all("before");
    for missing in confine(&Limits::default()).unwrap() {
        println!("missing: the process {missing}");
    }
    try_all("confined");
    let used = (&held().0).write_all(b"x").and_then(|()| {
        use std::os::unix::fs::FileExt;
        held().0.write_all_at(b"y", 9)
    });
    println!("confined: uses what it has: {}", if used.is_ok() { "ok" } else { "refused" });
    let mut text = String::new();
    status.read_to_string(&mut text).unwrap();
    println!("{text}");
}
