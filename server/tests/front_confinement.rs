//! What a front can still do once it is confined, tried by a process that confines itself as a front does. Each attempt also
//! succeeds in the same process before it is confined: otherwise it would show nothing.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use sandboxvm_server::{FrontUser, confine};
use std::{
    env, fs, io,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
    process::Command,
    sync::{Mutex, OnceLock},
};

/// Set for the process that tries.
const HOME: &str = "FRONT_DRILL_HOME";
const SECRET: &str = "a secret of the home";
/// A user of the range of fronts.
const USER: u32 = 0x6000_0000;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn result(value: libc::c_long) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<()> {
    // SAFETY: the calls below take numbers, or pointers that are null or to constants.
    result(unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], 0, 0, 0) })
}

/// The process that runs the tests.
fn parent() -> libc::c_long {
    env::var("FRONT_DRILL_PARENT").expect("it is set").parse().expect("a PID")
}

/// Made before, as a front has its listeners.
static LISTENER: OnceLock<libc::c_int> = OnceLock::new();
static SHUT: Mutex<Vec<libc::c_int>> = Mutex::new(Vec::new());

/// A listener that was shut down, and that no attempt has used.
fn shut_listener() -> libc::c_int {
    SHUT.lock().unwrap().pop().expect("there is one for each attempt")
}

/// Port 1, where nothing listens.
fn loopback() -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET.try_into().unwrap(),
        sin_port: 1_u16.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(std::net::Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    }
}

fn send_to(socket: libc::c_int, flags: libc::c_int, address: &libc::sockaddr_in) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).unwrap();
    let address = (&raw const *address).cast();
    // SAFETY: nothing is read from the empty buffer, and the address lives until the call returns.
    result(unsafe { libc::sendto(socket, std::ptr::null(), 0, flags, address, length) }.try_into().unwrap())
}

/// An attack, by name. One that succeeds must leave the process able to try the others.
type Attempt = (&'static str, fn(&str) -> io::Result<()>);

const ATTEMPTS: [Attempt; 16] = [
    ("read a file of the home", |home| fs::read_to_string(format!("{home}/secret")).map(drop)),
    ("list the home", |home| fs::read_dir(home).map(drop)),
    ("write a file of the home", |home| fs::write(format!("{home}/new"), "x")),
    ("open a file through /proc", |_| fs::read("/proc/self/environ").map(drop)),
    ("run a program", |_| Command::new("/bin/true").status().map(drop)),
    ("trace its parent", |_| {
        let parent = parent();
        // PTRACE_SEIZE, and its opposite.
        call(libc::SYS_ptrace, [0x4206, parent, 0]).and_then(|()| call(libc::SYS_ptrace, [17, parent, 0])).or_else(
            |error| {
                // A tracee that does not stop cannot be detached: that it could be seized is enough.
                if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
            },
        )
    }),
    ("signal its parent", |_| {
        let parent = parent();
        call(libc::SYS_kill, [parent, 0, 0])
    }),
    ("make a socket", |_| call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0])),
    ("make a namespace", |_| call(libc::SYS_unshare, [libc::CLONE_NEWUTS.into(), 0, 0])),
    ("change its user", |_| call(libc::SYS_setresuid, [0, 0, 0])),
    ("map executable memory", |_| {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let mapped = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    ("connect by a listener that was shut down", |_| {
        let socket = shut_listener();
        // No process listens there: that it was tried is enough.
        let sent = send_to(socket, libc::MSG_FASTOPEN, &loopback());
        sent.or_else(|error| if error.raw_os_error() == Some(libc::ECONNREFUSED) { Ok(()) } else { Err(error) })
    }),
    ("connect by a message", |_| {
        let socket = shut_listener();
        let mut address = loopback();
        // SAFETY: all zeroes is an empty message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
        // SAFETY: the message names an address that lives until the call returns.
        let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_FASTOPEN) };
        result(sent.try_into().unwrap())
            .or_else(|error| if error.raw_os_error() == Some(libc::ECONNREFUSED) { Ok(()) } else { Err(error) })
    }),
    ("set an option of a listener", |_| {
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
        let socket = *LISTENER.get().unwrap();
        // SAFETY: the option is a number that lives until the call returns.
        let set =
            unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, (&raw const on).cast(), length) };
        result(set.into())
    }),
    ("make a pair of sockets for datagrams", |_| {
        let mut pair = [0; 2];
        // SAFETY: the array has room for two descriptors.
        result(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) }.into())
    }),
    ("open a descriptor of another process", |_| call(libc::SYS_pidfd_open, [1, 0, 0])),
];

#[test]
fn a_confined_front_reaches_nothing_of_the_host() {
    if !is_root() {
        eprintln!("skipped: only root can change to another user");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("secret"), SECRET).unwrap();
    for user in [Some(USER), None] {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "attacker", "--nocapture", "--include-ignored"]);
        command.env(HOME, home.path()).env("FRONT_DRILL_PARENT", std::process::id().to_string());
        command.env("FRONT_DRILL_USER", user.map_or(String::new(), |uid| uid.to_string()));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        for (name, _) in ATTEMPTS {
            assert!(said.contains(&format!("before: {name}: ok")), "{user:?} {name}: {said}{errors}");
            assert!(said.contains(&format!("confined: {name}: refused")), "{user:?} {name}: {said}{errors}");
        }
        assert!(said.contains("confined: uses what it has: ok"), "{user:?}: {said}{errors}");
        assert!(said.contains("NoNewPrivs:\t1") && said.contains("Seccomp:\t2"), "{said}");
        assert!(said.contains("CapEff:\t0000000000000000") && said.contains("CapPrm:\t0000000000000000"), "{said}");
        if let Some(uid) = user {
            assert!(said.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{said}");
        }
        let _ = fs::remove_file(home.path().join("new"));
    }
}

/// The process that tries. The tests are threads, and each thread is confined on its own: this one confines itself.
#[test]
#[ignore = "run by the test above, in a separate process"]
fn attacker() {
    let Ok(home) = env::var(HOME) else { return };
    let user = env::var("FRONT_DRILL_USER").ok().and_then(|uid| uid.parse().ok());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let status = fs::File::open("/proc/thread-self/status").unwrap();
    let listener = || std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().into_raw_fd();
    LISTENER.set(listener()).unwrap();
    for _ in 0..4 {
        let shut = listener();
        // SAFETY: it is a socket of this process.
        result(unsafe { libc::shutdown(shut, libc::SHUT_RD) }.into()).unwrap();
        SHUT.lock().unwrap().push(shut);
    }
    let try_all = |when: &str| {
        for (name, attempt) in ATTEMPTS {
            match attempt(&home) {
                Ok(()) => println!("{when}: {name}: ok"),
                Err(error) => println!("{when}: {name}: refused ({error})"),
            }
        }
    };
    try_all("before");
    confine(user.map(|uid| FrontUser { uid, gid: uid }), false).unwrap();
    try_all("confined");
    let used = io::Write::write_all(&mut &ours, b"x").and_then(|()| io::Read::read_exact(&mut &theirs, &mut [0]));
    println!("confined: uses what it has: {}", if used.is_ok() { "ok" } else { "refused" });
    // Opened before, and read now: it says what the thread is now.
    println!("{}", io::read_to_string(status).unwrap());
    let _: [i32; 2] = [OwnedFd::from(ours).as_raw_fd(), OwnedFd::from(theirs).as_raw_fd()];
}
